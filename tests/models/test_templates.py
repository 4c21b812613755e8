import pytest

from alarm_models.errors import RecipeError, SampleError
from alarm_models.preprocessing.templates import FieldPattern, TextTemplate, conversation
from alarm_models.types import Message, Sample, Span

ULTRARM = TextTemplate("Human: {prompt}\nAssistant: {completion}")


def test_template_inserts_prompt_and_completion() -> None:
    rendered = ULTRARM.render(Sample("Who?", "Me."))
    assert rendered.text == "Human: Who?\nAssistant: Me."
    assert rendered.prompt == Span(7, 11)


def test_template_placeholder_inside_a_prompt_is_kept() -> None:
    text = ULTRARM.render(Sample("say {completion}", "no")).text
    assert text == "Human: say {completion}\nAssistant: no"


def test_template_words_are_joined_by_single_spaces() -> None:
    template = TextTemplate("{prompt:words} answer: {completion}")
    assert template.render(Sample(" a\n\n b\t", " x  y")).text == "a b answer:  x  y"


def test_template_field_comes_from_the_caller() -> None:
    template = TextTemplate("question: {question}")
    assert template.render(Sample("p", "c", {"question": "Why?"})).text == "question: Why?"


def test_template_field_left_out_is_found_in_the_prompt() -> None:
    fields = {"question": FieldPattern(r"question:\s*(.*?)\s*context:")}
    template = TextTemplate("{question}", fields=fields)
    assert template.render(Sample("question: Why? context: x", "c")).text == "Why?"
    assert template.render(Sample("Why not?", "c")).text == "Why not?"


def test_template_field_from_the_prompt_is_truncated_but_not_the_callers() -> None:
    fields = {"question": FieldPattern(r"question:\s*(.*?)\s*context:")}
    template = TextTemplate("Q: {question}", fields=fields)
    assert template.render(Sample("Why not?", "c")).prompt == Span(3, 11)
    assert template.render(Sample("p", "c", {"question": "Why?"})).prompt == Span(0, 0)


def test_template_with_prompt_and_field_truncates_the_prompt() -> None:
    fields = {"question": FieldPattern("(.*)")}
    both = TextTemplate("{prompt} {question}", fields=fields)
    assert both.render(Sample("abc", "c")).prompt == Span(0, 3)
    assert TextTemplate("{question} {prompt}", fields=fields).render(
        Sample("abc", "c")
    ).prompt == Span(4, 7)


def test_template_field_that_is_missing_fails_the_sample_by_name() -> None:
    with pytest.raises(SampleError, match="question") as caught:
        TextTemplate("{question}").render(Sample("p", "c"))
    assert caught.value.code == "invalid_sample"


def test_template_doubled_braces_become_braces() -> None:
    assert TextTemplate("{{x}} {prompt}").render(Sample("p", "c")).text == "{x} p"


@pytest.mark.parametrize("template", ["{prompt", "{a b}", "{prompt!r}", "{prompt:>9}"])
def test_template_with_wrong_syntax_is_refused(template: str) -> None:
    with pytest.raises(RecipeError):
        TextTemplate(template)


def test_template_naming_the_prompt_twice_gives_both_spans() -> None:
    rendered = TextTemplate("{prompt}: a. {prompt}: {completion}").render(Sample("Hi", "b"))
    assert rendered.text == "Hi: a. Hi: b"
    assert (rendered.copies, rendered.prompt) == ((Span(0, 2),), Span(7, 9))


def test_template_with_empty_braces_is_refused_with_the_escape() -> None:
    with pytest.raises(RecipeError, match="written twice"):
        TextTemplate("Answer in \\boxed{}. {completion}")
    assert TextTemplate("In \\boxed{{}}: {completion}").render(Sample("", "b")).text == (
        "In \\boxed{}: b"
    )


@pytest.mark.parametrize(
    ("strip", "suffix", "text", "kept"),
    [
        (False, "", "a b\n\n", 0),
        (True, "", "a b", 0),
        ("\n", "", "a b\n", 0),
        ("b", "", "a b\n\n", 0),
        (True, " </s>", "a b </s>", 5),
        (True, " b", "a b", 1),  # it ends so
        (False, "\n", "a b\n\n", 1),
    ],
)
def test_rendered_text_ends_by_strip_and_suffix(
    strip: bool | str, suffix: str, text: str, kept: int
) -> None:
    ended = TextTemplate("a {completion}").render(Sample("", "b\n\n")).ended(strip, suffix)
    assert (ended.text, ended.kept) == (text, kept)
    assert ended.completion.end <= len(text)


def test_template_messages_are_joined_by_blank_lines() -> None:
    prompt = (Message("system", "Be kind."), Message("user", "Hi"))
    assert ULTRARM.render(Sample(prompt, "Hello")).text == (
        "Human: Be kind.\n\nHi\nAssistant: Hello"
    )


def test_conversation_of_texts_has_a_user_and_an_assistant_turn() -> None:
    assert conversation(Sample("Hi", "Hello")) == (
        Message("user", "Hi"),
        Message("assistant", "Hello"),
    )
