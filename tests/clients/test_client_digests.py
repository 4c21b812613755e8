"""An answer that came without what proves it whole is told from one that never had it."""

import pytest

from alarm_client._transport import content_digest, has_lost_a_digest, is_answer_to

BOTH = {"content-digest": "sha-256=:a:", "request-content-digest": "sha-256=:b:"}


@pytest.mark.parametrize("lost", BOTH)
def test_one_digest_of_two_is_a_loss(lost):
    left = {name: value for name, value in BOTH.items() if name != lost}
    assert has_lost_a_digest(left)


@pytest.mark.parametrize(
    "headers",
    [BOTH, {}, {"request-content-digest": "sha-256=:b:", "content-encoding": "gzip"}],
    ids=["both", "neither", "compressed on its way"],
)
def test_both_or_neither_is_none_and_what_was_compressed_may_lack_its_own(headers):
    assert not has_lost_a_digest(headers)


def test_an_answer_names_the_body_that_it_is_to():
    headers = {"request-content-digest": content_digest(b"asked")}
    assert is_answer_to(b"asked", headers)
    assert not is_answer_to(b"something else", headers)
    assert is_answer_to(b"asked", {})
