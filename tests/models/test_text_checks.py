import pytest
import sacrebleu
from scoring_directly import completion, load_direct, values

from alarm_models.errors import RecipeError
from alarm_models.types import Sample, Span


def test_length_counts_policy_tokens_else_words() -> None:
    offsets = (Span(0, 1), Span(1, 2), Span(2, 2))
    tokens = Sample("?", "ab", token_offsets=offsets)
    assert values(load_direct(kind="length"), tokens, completion("three white-space words")) == [
        3,
        3,
    ]


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        # 8 words, 10 syllables ("ex-cel-lent"): 0.39 * 8 + 11.8 * 1.3 - 15.59 = 2.87.
        ("The cat sat on the excellent red mat.", 2.9),
        # Two sentences of 3 words: 0.39 * 3 + 11.8 * 1.0 - 15.59 = -2.62, and down to -2.7.
        ("The cat sat. The dog ran.", -2.7),
        # A part of two words is no sentence, so 6 words are in one.
        ("The cat sat on. No, no!", -1.5),
        ("", -15.7),
    ],
)
def test_readability_equals_the_grade_by_hand(text: str, grade: float) -> None:
    assert values(load_direct(kind="readability"), completion(text)) == [grade]


def test_language_score_is_a_confidence_among_the_recipes_languages() -> None:
    model = load_direct(kind="language", target="en", languages=["en", "es"])
    english, spanish, none = values(
        model,
        completion("The meeting is tomorrow at noon."),
        completion("La reunión es mañana al mediodía."),
        completion("123 ..."),
    )
    assert isinstance(english, float)
    assert isinstance(spanish, float)
    assert english > 0.9
    assert spanish < 0.1
    assert none == 0


def test_language_that_is_unknown_is_refused() -> None:
    with pytest.raises(RecipeError, match="languages has \\['xx'\\]"):
        load_direct(kind="language", languages=["en", "xx"])


def test_regex_matches_somewhere_or_the_whole() -> None:
    texts = (completion("so <answer>4</answer>"), completion("<answer>4</answer>"), completion("4"))
    pattern = r"<answer>\d</answer>"
    somewhere = load_direct(kind="regex", pattern=pattern)
    whole = load_direct(kind="regex", pattern=pattern, match="whole")
    assert values(somewhere, *texts) == [1, 1, 0]
    assert values(whole, *texts) == [0, 1, 0]


def test_regex_timeout_fails_its_sample_alone() -> None:
    model = load_direct(kind="regex", pattern=r"(?:a|aa)*c", match="whole", timeout_s=0.2)
    texts = ("aac", "a" * 60 + "bc", "b")
    ended, endless, after = values(model, *map(completion, texts))
    assert (ended, after) == (1, 0)
    assert endless in ("the pattern took longer than 0.2 s", "the check took longer than 0.2 s")


def test_regex_that_does_not_compile_is_refused() -> None:
    with pytest.raises(RecipeError, match="pattern '\\(' cannot be read"):
        load_direct(kind="regex", pattern="(")


def test_repetition_is_the_share_of_repeated_ngrams() -> None:
    # Bigrams: ab ba ab ba aa: three of five are new.
    bigrams = load_direct(kind="repetition", ngram=2)
    assert values(bigrams, completion("a b A b a a"), completion("a")) == [pytest.approx(0.4), 0]


@pytest.mark.parametrize(
    ("metric", "reference_score"),
    [
        ("chrf", sacrebleu.sentence_chrf),
        ("chrf++", lambda text, given: sacrebleu.sentence_chrf(text, given, word_order=2)),
        ("bleu", sacrebleu.sentence_bleu),
    ],
)
def test_similarity_equals_sacrebleus_sentence_score(metric: str, reference_score: object) -> None:
    said, wanted = "The cat sat on the mat.", "A cat was sitting on the mat."
    model = load_direct(kind="similarity", metric=metric)
    assert callable(reference_score)
    assert values(model, completion(said, reference=wanted)) == [
        pytest.approx(reference_score(said, [wanted]).score)
    ]


def test_similarity_without_reference_says_what_to_send() -> None:
    same, lacking = values(
        load_direct(kind="similarity"), completion("a b c", reference="a b c"), completion("a")
    )
    assert same == 100
    assert lacking == "the model's template names {reference}: send it in the sample's `fields`"


def test_exact_match_compares_the_last_match_with_the_reference() -> None:
    model = load_direct(kind="exact-match", answer=r"\\boxed\{(.*?)\}", ignore_case=True)
    assert values(
        model,
        completion(r"first \boxed{3}, no, \boxed{ Four }", reference="four"),
        completion(r"\boxed{four}, no, \boxed{3}", reference="four"),
        completion("four", reference="four"),
    ) == [1, 0, 0]


def test_exact_match_of_a_whole_completion_is_case_sensitive() -> None:
    model = load_direct(kind="exact-match", reference="{solution}")
    yes, no = completion(" Yes\n", solution="Yes"), completion("yes", solution="Yes")
    assert values(model, yes, no) == [1, 0]


def test_exact_match_pattern_without_a_group_is_refused() -> None:
    with pytest.raises(RecipeError, match="has no group"):
        load_direct(kind="exact-match", answer="answer: .*")
