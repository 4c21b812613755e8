"""What the soak of groups calls a hang."""

from group_soak import Tally


def test_hang_is_longer_than_timeout_and_scoring() -> None:
    tally = Tally(whole_s=[0.1, 8.0], member_s=[(20.0, "a"), (22.0, "b")])
    assert tally.hung(group_timeout_s=5.0, grace_s=10.0) == ["b: 22.0 s"]
    tally.whole_s.pop()
    assert tally.hung(group_timeout_s=5.0, grace_s=10.0) == ["a: 20.0 s", "b: 22.0 s"]


def test_time_before_a_retry_is_the_clients() -> None:
    report = Tally(longest_unsent_s=3.0, member_s=[(1.0, "a")]).report(5.0, 10.0)
    assert report["slowest_member_s"] == 1.0
    assert report["client"]["longest_unsent_s"] == 3.0
