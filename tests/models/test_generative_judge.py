"""Kind `judge`: the rating that a causal model writes, with models of known answers."""

from pathlib import Path

import pytest
import tiny
import torch
from pydantic import ValidationError
from scoring import score
from tiny import Checkpoint

from alarm_models.errors import RecipeError, SampleError
from alarm_models.modeling.inputs import ModelInput
from alarm_models.recipe.specs import JudgeSpec
from alarm_models.reward_models.base import HostModel, RewardModel
from alarm_models.reward_models.judge import JudgeModel
from alarm_models.reward_models.registry import Loader
from alarm_models.types import Message, Sample, Score

#: After a completion's last letter: a rating, a verdict without one, a rating that never comes.
SCRIPT = {
    "A": ("5",), "5": ("",), "B": ("1",), "1": ("",), "C": ("z",), "z": ("",), "D": ("y",),
    "y": ("D",), "\n": ("4", "2"), "4": ("",), "2": ("",),
}  # fmt: skip


#: Loads each checkpoint once.
LOADER = Loader(torch.device("cpu"))


def load(spec: JudgeSpec) -> RewardModel:
    model = LOADER.load(spec, {})
    assert not isinstance(model, HostModel)
    return model


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny.scripted_judge(tmp_path_factory.mktemp("judge"), SCRIPT)


def judge(checkpoint: Checkpoint, **more: object) -> JudgeSpec:
    keys: dict[str, object] = {"checkpoint": str(checkpoint.folder), "max_new_tokens": 6}
    if not {"rubric", "messages"} & set(more):
        keys["template"] = "{prompt} {completion}"
    return JudgeSpec.model_validate(keys | more)


def outcomes(model: RewardModel, *samples: Sample) -> list[float | str | None]:
    prepared = model.prepare(samples)
    features = [one for one in prepared if isinstance(one, ModelInput)]
    rows = iter(model.forward(features))
    made: list[float | str | None] = []
    for one in prepared:
        try:
            if isinstance(one, SampleError):
                raise one
            read = model.read(one, next(rows)) if isinstance(one, ModelInput) else one
            made.append(read.value)
        except SampleError as error:
            made.append(error.message)
    return made


def asked(checkpoint: Checkpoint, spec: JudgeSpec, sample: Sample) -> str:
    """Return the text of the question."""
    (features,) = load(spec).prepare([sample])
    assert isinstance(features, ModelInput)
    # The tokenizer puts a space before each word after a special token.
    return str(checkpoint.tokenizer.decode(features.ids)).replace("> ", ">").strip()


def test_judge_rating_in_the_written_answer_is_the_score(scripted: Checkpoint) -> None:
    model = load(judge(scripted))
    (one,) = score(model, [Sample("Rate", "it A")])
    (features,) = model.prepare([Sample("Rate", "it A")])
    assert isinstance(features, ModelInput)
    assert one == Score(5, None, len(features.ids) + 2, truncated=False)
    assert features.num_cost_tokens == len(features.ids) + 6


def test_judge_answer_cut_off_or_without_rating_fails_its_sample_alone(
    scripted: Checkpoint,
) -> None:
    model = load(judge(scripted))
    samples = [Sample("Rate", f"{'it ' * at}{end}") for at, end in enumerate("ABCD")]
    assert outcomes(model, *samples) == [
        5,
        1,
        'the judge\'s answer has no number that is a rating: "z"',
        'the judge\'s answer was cut off; raise max_new_tokens: "yDyDyD"',
    ]


def test_judge_bounds_values_and_pattern_apply_to_the_answer(scripted: Checkpoint) -> None:
    good, bad, none, _ = [Sample("Rate", end) for end in "ABCD"]
    bounded = load(judge(scripted, lowest=2, highest=5))
    assert outcomes(bounded, good, bad) == [
        5,
        "the judge's answer has 1, which is not within [2.0, 5.0]",
    ]
    by_name = load(judge(scripted, values={"z": 0.5, "5": 1}))
    assert outcomes(by_name, good, none) == [1, 0.5]
    by_pattern = load(judge(scripted, pattern=r"[15]"))
    assert outcomes(by_pattern, bad, none) == [1, 'the judge\'s answer has no number: "z"']


def test_judge_votes_are_their_mean_and_repeat_with_the_seed(scripted: Checkpoint) -> None:
    rubric = {"rubric": "Rate {completion} for {prompt}", "n": 8, "temperature": 1.0}
    samples = [Sample("Why?", f"Because of {number}.") for number in range(3)]
    first = outcomes(load(judge(scripted, **rubric)), *samples)
    assert first == [outcomes(load(judge(scripted, **rubric)), one)[0] for one in samples]
    assert all(isinstance(one, float) and 2 <= one <= 4 for one in first)
    assert first != outcomes(load(judge(scripted, **rubric, seed=7)), *samples)


def test_judge_rubric_is_one_user_message_before_the_assistants_turn(scripted: Checkpoint) -> None:
    spec = judge(
        scripted, rubric="Q: {prompt} A: {completion} By {rule}", defaults={"rule": "tone"}
    )
    begun = "<|im_start|>user\nQ: Hi A: Ho By {}<|im_end|>\n<|im_start|>assistant"
    assert asked(scripted, spec, Sample("Hi", "Ho")) == begun.format("tone")
    sent = Sample("Hi", "Ho", fields={"rule": "facts"})
    assert asked(scripted, spec, sent) == begun.format("facts")


def test_judge_messages_keep_roles_and_truncate_the_prompt(scripted: Checkpoint) -> None:
    messages = [
        {"role": "system", "content": "You judge."},
        "{prompt}",
        {"role": "user", "content": "Rate {completion}"},
    ]
    prompt = (Message("user", "one"), Message("assistant", "two"), Message("user", "three " * 40))
    spec = judge(scripted, messages=messages, max_tokens=64)
    text = asked(scripted, spec, Sample(prompt, "four"))
    assert text.startswith("<|im_start|>system\nYou judge.<|im_end|>\n<|im_start|>user\n")
    assert "two" not in text
    assert text.endswith("<|im_start|>user\nRate four<|im_end|>\n<|im_start|>assistant")
    (features,) = load(spec).prepare([Sample(prompt, "four")])
    assert isinstance(features, ModelInput)
    assert features.truncated
    assert len(features.ids) == 64


def test_judge_prompt_of_several_messages_is_written_by_prompt_turns_or_refused(
    scripted: Checkpoint,
) -> None:
    rubric = {"rubric": "{prompt} / {completion}"}
    chat = Sample((Message("user", "a"), Message("assistant", "b"), Message("user", "c")), "d")
    turns = {"user": "U: {}", "assistant": "A: {}", "separator": "; "}
    text = asked(scripted, judge(scripted, **rubric, prompt_turns=turns), chat)
    assert "U: a; A: b; U: c / d" in text
    (refused,) = load(judge(scripted, **rubric, chats="refuse")).prepare([chat])
    assert isinstance(refused, SampleError)
    assert "write `prompt_turns = " in refused.message
    steps = (Message("assistant", "d"), Message("tool", "e"), Message("assistant", "f"))
    (refused,) = load(judge(scripted, **rubric, chats="refuse")).prepare([Sample("a", steps)])
    assert isinstance(refused, SampleError)
    assert "3 messages of the completion would lose their roles" in refused.message


def test_judge_question_leaves_room_for_the_answer(scripted: Checkpoint) -> None:
    assert load(judge(scripted, max_new_tokens=100)).limit == 412
    with pytest.raises(RecipeError, match="has 512 positions, of which an answer may take 100"):
        load(judge(scripted, max_new_tokens=100, max_tokens=500))


def test_judges_on_one_checkpoint_share_its_weights(scripted: Checkpoint) -> None:
    one, other = (load(judge(scripted, rubric=f"{{completion}} {word}")) for word in ("one", "two"))
    assert isinstance(one, JudgeModel)
    assert isinstance(other, JudgeModel)
    assert one._network._model is other._network._model  # type: ignore[attr-defined]
    assert one.fingerprint != other.fingerprint


def test_judge_thoughts_that_the_question_opens_end_in_the_answer(tmp_path: Path) -> None:
    script = {">": ("3",), "3": ("",)}
    checkpoint = tiny.scripted_judge(tmp_path, script)
    model = load(judge(checkpoint, suffix="<think>"))
    (message,) = outcomes(model, Sample("Rate", "it"))
    assert message == (
        'the judge\'s answer ends within its thoughts; raise max_new_tokens: "<think>3"'
    )


def test_judge_recipe_that_asks_nothing_or_twice_or_shows_no_completion_is_refused(
    scripted: Checkpoint,
) -> None:
    for keys, told in (
        ({"template": "chat"}, "not none: write `rubric = "),
        ({"rubric": "{completion}", "template": "{completion}"}, "not rubric and template"),
        ({"rubric": "Rate it"}, "rubric does not contain the completion"),
        ({"n": 3}, "3 answers at temperature 0 are all the same"),
        ({"head": "score"}, "leave head out"),
        ({"pattern": "("}, "is not a valid regular expression"),
    ):
        with pytest.raises(ValidationError, match=told):
            judge(scripted, **keys)
