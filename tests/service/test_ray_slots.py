from alarm_models.types import Message, Sample
from alarm_service.ray.routing import NUM_SLOTS, chunks, slot_of


def samples(*prompts: str) -> list[Sample]:
    return [Sample(prompt, f"{index}") for index, prompt in enumerate(prompts)]


def test_samples_of_a_prompt_have_one_slot_whatever_else_they_say() -> None:
    one, other = Sample("Who?", "Jane.", id="a"), Sample("Who?", "Charles.", id="b")
    assert slot_of(one) == slot_of(other)


def test_messages_have_the_slot_of_their_text() -> None:
    chat = Sample((Message("user", "Who?"),), "Jane.")
    assert slot_of(chat) == slot_of(Sample("Who?", "Jane."))


def test_a_text_that_is_no_unicode_has_a_slot() -> None:
    assert 0 <= slot_of(Sample("\ud800", "")) < NUM_SLOTS


def test_prompts_are_spread_over_all_slots() -> None:
    assert len({slot_of(Sample(f"{number}", "")) for number in range(1000)}) == NUM_SLOTS


def test_a_group_is_one_chunk_wherever_its_samples_stand() -> None:
    cut = chunks(samples("Who?", "When?", "Who?", "When?", "Who?"), max_tokens=1000)
    assert sorted(list(chunk.indices) for chunk in cut) == [[0, 2, 4], [1, 3]]


def test_each_sample_is_in_one_chunk() -> None:
    many = samples(*(f"{number % 300}" for number in range(1000)))
    cut = chunks(many, max_tokens=100)
    assert sorted(index for chunk in cut for index in chunk.indices) == list(range(1000))
    assert all(len({slot_of(many[index]) for index in chunk.indices}) == 1 for chunk in cut)


def test_a_slot_with_too_many_tokens_is_cut_and_none_is_empty() -> None:
    # 16 tokens for a template, 400 characters at 4 a token, and a digit: 116 tokens each.
    cut = chunks(samples(*["x" * 400] * 5), max_tokens=300)
    assert [list(chunk.indices) for chunk in cut] == [[0, 1], [2, 3], [4]]
    assert [chunk.num_tokens for chunk in cut] == [232, 232, 116]


def test_a_sample_that_is_too_large_goes_alone() -> None:
    cut = chunks(samples(*["x" * 4000] * 2), max_tokens=300)
    assert [list(chunk.indices) for chunk in cut] == [[0], [1]]


def test_no_samples_are_no_chunks() -> None:
    assert chunks([], max_tokens=300) == []
