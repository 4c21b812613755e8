from alarm_models.types import Message, Sample
from alarm_service.ray.routing import NUM_SLOTS, chunks, slot_of


def samples(*prompts: str) -> list[Sample]:
    return [Sample(prompt, f"{index}") for index, prompt in enumerate(prompts)]


def test_slot_of_depends_on_the_prompt_only() -> None:
    one, other = Sample("Who?", "Jane.", id="a"), Sample("Who?", "Charles.", id="b")
    assert slot_of(one) == slot_of(other)


def test_slot_of_messages_is_the_slot_of_their_text() -> None:
    chat = Sample((Message("user", "Who?"),), "Jane.")
    assert slot_of(chat) == slot_of(Sample("Who?", "Jane."))


def test_slot_of_text_with_lone_surrogate() -> None:
    assert 0 <= slot_of(Sample("\ud800", "")) < NUM_SLOTS


def test_slot_of_spreads_prompts_over_all_slots() -> None:
    assert len({slot_of(Sample(f"{number}", "")) for number in range(1000)}) == NUM_SLOTS


def test_chunks_group_is_one_chunk_in_any_order() -> None:
    cut = chunks(samples("Who?", "When?", "Who?", "When?", "Who?"), max_tokens=1000)
    assert sorted(list(chunk.indices) for chunk in cut) == [[0, 2, 4], [1, 3]]


def test_chunks_have_each_sample_once() -> None:
    many = samples(*(f"{number % 300}" for number in range(1000)))
    cut = chunks(many, max_tokens=100)
    assert sorted(index for chunk in cut for index in chunk.indices) == list(range(1000))
    assert all(len({slot_of(many[index]) for index in chunk.indices}) == 1 for chunk in cut)


def test_chunks_slot_over_the_limit_is_split_without_empty_chunks() -> None:
    # 16 tokens for a template, 400 characters at 4 a token, and a digit: 116 tokens each.
    cut = chunks(samples(*["x" * 400] * 5), max_tokens=300)
    assert [list(chunk.indices) for chunk in cut] == [[0, 1], [2, 3], [4]]
    assert [chunk.num_tokens for chunk in cut] == [232, 232, 116]


def test_chunks_sample_over_the_limit_is_alone() -> None:
    cut = chunks(samples(*["x" * 4000] * 2), max_tokens=300)
    assert [list(chunk.indices) for chunk in cut] == [[0], [1]]


def test_chunks_of_no_samples_are_empty() -> None:
    assert chunks([], max_tokens=300) == []
