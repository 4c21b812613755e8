import pytest
from languagetool import RULE, languagetool
from pydantic import ValidationError
from scoring_directly import completion, load_direct, score_directly, values

from alarm_models.errors import RecipeError, SampleError, UnreachableError
from alarm_models.reward_models.base import HostModel
from alarm_models.types import Sample, Score, Span


def errors(model: HostModel, *samples: Sample) -> list[list[tuple[str, str | None]]]:
    """Return the characters and the rule of each sample's errors."""
    scores = score_directly(model, *samples)
    found = []
    for sample, score in zip(samples, scores, strict=True):
        assert isinstance(score, Score)
        text, segments = sample.completion_text, score.segments or ()
        found.append([(text[one.span.start : one.span.end], one.label) for one in segments])
    return found


def test_harper_spans_after_accents_and_emoji_count_code_points() -> None:
    assert errors(
        load_direct(kind="grammar"),
        completion("She said “I should of went” 🎉 to the the store."),
        completion("🇪🇸👩‍👩‍👧 naïve café: this is an test, and he go home 🙂."),
        completion("Madam President, I would like to thank the rapporteur."),
    ) == [
        [("should of", "ModalOf"), ("the the", "RepeatedWords")],
        [("an", "AnA"), ("go", "PronounVerbAgreement")],
        [],
    ]


def test_grammar_with_errors_from_the_caller_skips_the_checker() -> None:
    text = "This is an test."
    sample = Sample("?", text, segments={"errors": (Span(8, 10), Span(0, 4), Span(15, 99))})
    (score,) = score_directly(load_direct(kind="grammar"), sample)
    assert isinstance(score, Score)
    assert [one.span for one in score.segments or ()] == [Span(8, 10), Span(0, 4), Span(15, 16)]
    assert {one.label for one in score.segments or ()} == {"error"}
    assert {one.is_positive for one in score.segments or ()} == {False}


def test_grammar_score_is_errors_per_token() -> None:
    model = load_direct(kind="grammar")
    assert values(model, completion("This is an test."), completion("Fine."), completion("")) == [
        0.25,
        0,
        None,
    ]


def test_harper_with_ignored_rules_finds_no_errors() -> None:
    text = completion("This is an test of the the rule.")
    assert errors(load_direct(kind="grammar", ignored_rules=["AnA"]), text) == [
        [("the the", "RepeatedWords")]
    ]


def test_harper_dialects_differ_in_spelling() -> None:
    text = completion("Her favourite colour is grey.")
    (american,) = errors(load_direct(kind="grammar", language="en-US"), text)
    (british,) = errors(load_direct(kind="grammar", language="en-GB"), text)
    assert [word for word, _ in american] == ["favourite", "colour", "grey"]
    assert british == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"language": "fr"}, "harper supports en-US"),
        ({"ignored_rules": ["NoSuchRule"]}, r"ignored_rules has \['NoSuchRule'\]"),
    ],
)
def test_harper_with_unknown_language_or_rule_is_refused_at_loading(
    more: dict[str, object], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        load_direct(kind="grammar", **more)


@pytest.mark.parametrize("more", [{"engine": "languagetool"}, {"url": "http://127.0.0.1:1"}])
def test_grammar_spec_with_engine_and_url_that_do_not_match_is_refused(
    more: dict[str, object],
) -> None:
    with pytest.raises(ValidationError, match="requires `url`"):
        load_direct(kind="grammar", **more)


@pytest.mark.parametrize("ending", ["/", "/v2", "/v2/"])
def test_languagetool_offsets_become_code_points(ending: str) -> None:
    with languagetool() as server:
        model = load_direct(
            kind="grammar",
            engine="languagetool",
            url=server.url + ending,
            language="en-GB",
            ignored_rules=["A", "B"],
        )
        text = "🎉👩‍👩‍👧 café: to the the store, 🙂 and and so."
        assert errors(model, completion(text)) == [[("the the", RULE), ("and and", RULE)]]
        assert server.forms == [{"text": text, "language": "en-GB", "disabledRules": "A,B"}]


def test_languagetool_refusing_a_text_fails_its_sample_alone() -> None:
    with languagetool() as server:
        model = load_direct(kind="grammar", engine="languagetool", url=server.url)
        texts = ("so so", "overload", "fine", "nonsense", "slow")
        first, overloaded, fine, nonsense, slow = score_directly(model, *map(completion, texts))
        assert isinstance(first, Score)
        assert isinstance(fine, Score)
        assert isinstance(overloaded, SampleError)
        assert overloaded.message.endswith("server returned status 503: Error: overloaded")
        assert isinstance(nonsense, SampleError)
        assert "returned an invalid response" in nonsense.message
        assert isinstance(slow, SampleError)
        assert "did not check the whole text" in slow.message


def test_languagetool_unreachable_fails_its_samples_alone() -> None:
    model = load_direct(kind="grammar", engine="languagetool", url="http://127.0.0.1:9")
    (outcome,) = score_directly(model, completion("fine"))
    assert isinstance(outcome, SampleError)
    assert outcome.code == "model_failed"
    assert "at http://127.0.0.1:9/v2/check cannot be reached: [Errno 111]" in outcome.message


async def test_languagetool_unreachable_at_open_raises_unreachable_error() -> None:
    away = load_direct(kind="grammar", engine="languagetool", url="http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match="cannot be reached"):
        await away.open()
    await away.close()
    with languagetool() as server:
        there = load_direct(kind="grammar", engine="languagetool", url=server.url)
        await there.open()
        await there.close()
