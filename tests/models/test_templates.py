import pytest

from alarm_models.errors import RecipeError, SampleError
from alarm_models.preprocessing.templates import FieldPattern, TextTemplate, conversation
from alarm_models.types import Message, Sample, Span

ULTRARM = TextTemplate("Human: {prompt}\nAssistant: {completion}")


def test_the_prompt_and_the_completion_take_their_places() -> None:
    rendered = ULTRARM.render(Sample("Who?", "Me."))
    assert rendered.text == "Human: Who?\nAssistant: Me."
    assert rendered.prompt == Span(7, 11)


def test_a_placeholder_inside_a_prompt_is_not_replaced() -> None:
    text = ULTRARM.render(Sample("say {completion}", "no")).text
    assert text == "Human: say {completion}\nAssistant: no"


def test_words_are_joined_by_single_spaces() -> None:
    template = TextTemplate("{prompt:words} answer: {completion}")
    assert template.render(Sample(" a\n\n b\t", " x  y")).text == "a b answer:  x  y"


def test_a_field_comes_from_the_caller() -> None:
    template = TextTemplate("question: {question}")
    assert template.render(Sample("p", "c", {"question": "Why?"})).text == "question: Why?"


def test_a_field_that_the_caller_leaves_out_is_found_in_the_prompt() -> None:
    fields = {"question": FieldPattern(r"question:\s*(.*?)\s*context:")}
    template = TextTemplate("{question}", fields=fields)
    assert template.render(Sample("question: Why? context: x", "c")).text == "Why?"
    assert template.render(Sample("Why not?", "c")).text == "Why not?"


def test_a_field_found_in_the_prompt_may_be_shortened_and_one_from_the_caller_may_not() -> None:
    fields = {"question": FieldPattern(r"question:\s*(.*?)\s*context:")}
    template = TextTemplate("Q: {question}", fields=fields)
    assert template.render(Sample("Why not?", "c")).prompt == Span(3, 11)
    assert template.render(Sample("p", "c", {"question": "Why?"})).prompt == Span(0, 0)


def test_the_prompt_itself_is_what_is_shortened_where_a_template_names_both() -> None:
    fields = {"question": FieldPattern("(.*)")}
    both = TextTemplate("{prompt} {question}", fields=fields)
    assert both.render(Sample("abc", "c")).prompt == Span(0, 3)
    assert TextTemplate("{question} {prompt}", fields=fields).render(
        Sample("abc", "c")
    ).prompt == Span(4, 7)


def test_a_field_that_nobody_gives_fails_the_sample_by_name() -> None:
    with pytest.raises(SampleError, match="question") as caught:
        TextTemplate("{question}").render(Sample("p", "c"))
    assert caught.value.code == "invalid_sample"


def test_doubled_braces_stand_for_braces() -> None:
    assert TextTemplate("{{x}} {prompt}").render(Sample("p", "c")).text == "{x} p"


@pytest.mark.parametrize("template", ["{prompt", "{a b}", "{prompt!r}", "{prompt:>9}"])
def test_a_template_that_cannot_be_read_is_refused(template: str) -> None:
    with pytest.raises(RecipeError):
        TextTemplate(template)


def test_a_prompt_that_stands_twice_is_told_in_both_places() -> None:
    rendered = TextTemplate("{prompt}: a. {prompt}: {completion}").render(Sample("Hi", "b"))
    assert rendered.text == "Hi: a. Hi: b"
    assert (rendered.copies, rendered.prompt) == ((Span(0, 2),), Span(7, 9))


def test_braces_that_are_no_name_are_refused_with_how_to_write_them() -> None:
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
def test_a_text_ends_as_the_recipe_says(
    strip: bool | str, suffix: str, text: str, kept: int
) -> None:
    ended = TextTemplate("a {completion}").render(Sample("", "b\n\n")).ended(strip, suffix)
    assert (ended.text, ended.kept) == (text, kept)
    assert ended.completion.end <= len(text)


def test_messages_in_a_text_template_are_joined_by_blank_lines() -> None:
    prompt = (Message("system", "Be kind."), Message("user", "Hi"))
    assert ULTRARM.render(Sample(prompt, "Hello")).text == (
        "Human: Be kind.\n\nHi\nAssistant: Hello"
    )


def test_texts_become_a_users_and_an_assistants_turn() -> None:
    assert conversation(Sample("Hi", "Hello")) == (
        Message("user", "Hi"),
        Message("assistant", "Hello"),
    )
