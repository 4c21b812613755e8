"""What models are shown of samples, and where that is in the completion that was sent."""

import pytest
from scoring_directly import load_direct, values
from tolerance import by_hand

from alarm_models.errors import SampleError
from alarm_models.preprocessing.find_thoughts import DEFAULT_TAGS, answer_spans, find_thoughts
from alarm_models.preprocessing.shown_sample import ViewRules
from alarm_models.recipe.specs import PythonSpec, RegexSpec
from alarm_models.types import Message, Sample, Score, SegmentScore, Span, ToolCall


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("plain", "plain"),
        (" plain ", " plain "),
        ("<think>a</think>b", "b"),
        ("a</think>\n\nb ", "b "),
        ("<think>a", ""),
        ("b <think>a", "b"),
        ("One.\n\n<think>a</think>\n\nTwo.", "One.\n\nTwo."),
        ("One<think>a</think> two", "One two"),
        ("<think>a</think>b</think>c", "c"),
        ("<think>a <think> b</think>c", "c"),
        ("<think></think>", ""),
    ],
)
def test_answer_is_what_remains_without_thoughts(text: str, answer: str) -> None:
    thoughts = find_thoughts(text, DEFAULT_TAGS)
    assert "".join(text[a:b] for a, b in answer_spans(text, thoughts)) == answer
    view = ViewRules().view(Sample("p", text))
    assert view.sample.completion == answer
    assert (view.shown is None) == (text == answer)


def test_other_tags_are_thoughts_where_the_recipe_names_them() -> None:
    rules = ViewRules(think_tags=(("[THINK]", "[/THINK]"),))
    assert rules.view(Sample("p", "[THINK]a[/THINK]b")).sample.completion == "b"
    assert rules.view(Sample("p", "<think>a</think>b")).shown is None


def test_spans_of_answer_are_those_of_the_sent_completion() -> None:
    text = "<think>Hm.</think> One. <think>x</think>Two."
    offsets = tuple(Span(at, at + 1) for at in range(len(text)))
    sample = Sample("p", text, token_offsets=offsets, segments={"sentences": (Span(19, 23),)})
    view = ViewRules().view(sample)
    assert view.sample.completion == "One. Two."
    assert view.sample.token_offsets == tuple(Span(at, at + 1) for at in range(9))
    assert view.sample.segments["sentences"] == (Span(0, 4),)
    assert view.shown is not None
    judged = tuple(SegmentScore(one, None, 1.0, None) for one in (Span(0, 4), Span(5, 9)))
    got = view.shown.score_of_given(Score(1.0, judged, 0, False))
    spans = [one.span for one in got.segments or ()]
    assert [text[start:end] for start, end in spans] == ["One.", "Two."]
    assert got.omitted == ("thinking",)


def test_results_of_tools_are_not_judged_as_the_policys() -> None:
    call = ToolCall("look_up", "{}")
    completion = (
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "found"),
        Message("assistant", "Done.", reasoning="So."),
    )
    sample = Sample((Message("system", "Be kind."), Message("user", "Do.")), completion)
    view = ViewRules(is_text=True, policy_only=True, keeps_system=False).view(sample)
    assert view.sample.completion == "Done."
    assert view.sample.prompt == (Message("user", "Do."),)
    assert view.shown is not None
    assert view.shown.omitted == ("system", "thinking", "tool_calls", "tool_results")
    (turn,) = (view.shown.to_given(one) for one in view.sample.turns)
    assert sample.completion_text[turn.start : turn.end] == "Done."


@pytest.mark.parametrize(
    ("role", "name"),
    [("user", "messages"), ("tool", "tool_results"), ("system", "system")],
)
def test_message_that_the_policy_did_not_write_is_named_by_its_role(role: str, name: str) -> None:
    completion = (Message("assistant", "Which?"), Message(role, "This."), Message("assistant", "A"))
    view = ViewRules(policy_only=True).view(Sample("p", completion))
    assert view.shown is not None
    assert view.shown.omitted == (name,)


def test_part_that_is_not_text_is_named() -> None:
    sample = Sample("p", (Message("assistant", "a", other_parts=("input_audio",)),))
    with pytest.raises(SampleError, match="'input_audio'") as raised:
        ViewRules().view(sample)
    assert raised.value.code == "unsupported_content"


def test_regex_that_names_a_tag_sees_thoughts() -> None:
    assert RegexSpec(pattern="<think>.*<\\/think>").view_rules.thinking == "keep"
    assert RegexSpec(pattern="a").view_rules.thinking == "strip"
    assert PythonSpec(function="rewards:format").view_rules.thinking == "keep"
    with pytest.raises(ValueError, match="remove one"):
        RegexSpec(pattern="<think>", thinking="strip")


def test_checks_read_the_answer_without_its_thought() -> None:
    model = load_direct(kind="exact-match")
    fields = {"reference": "4"}
    samples = [Sample("2 + 2?", text, fields) for text in ("<think>2 and 2</think>4", "4")]
    assert values(model, *samples) == [by_hand(1.0), by_hand(1.0)]
