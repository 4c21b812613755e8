"""Generated answers against transformers' own generation, run plainly and alone."""

import pytest
import tiny
import torch
import transformers as hf
from tiny import EOS, Checkpoint

from alarm_models.cancellation import Cancelled, cancellable
from alarm_models.errors import CheckpointError
from alarm_models.modeling.generation import NO_TOKEN, NOT_FINITE, GenerationSettings, TextGenerator
from alarm_models.modeling.inputs import BatchLayout, ModelInput
from alarm_models.types import Span

PROMPTS = [(1, 70, 71, 72), (1, *range(100, 130)), (1, 70, 71, 72, 73, 74, 75)]


def inputs(*prompts: tuple[int, ...]) -> list[ModelInput]:
    return [ModelInput(ids, (Span(0, 1),), truncated=False) for ids in prompts]


def generator(checkpoint: Checkpoint, **settings: float) -> TextGenerator:
    model = type(checkpoint.model).from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
    made = {"max_new_tokens": 12, **settings}
    return TextGenerator(model).with_settings(GenerationSettings(**made))  # type: ignore[arg-type]


def rows(network: TextGenerator, *prompts: tuple[int, ...]) -> list[list[list[int]]]:
    return [
        [[token for token in row if token != NO_TOKEN] for row in answers.tolist()]
        for answers in network.forward(inputs(*prompts))
    ]


@torch.inference_mode()
def plain(checkpoint: Checkpoint, ids: tuple[int, ...], **more: object) -> list[int]:
    made = checkpoint.model.generate(
        torch.tensor([ids]), max_new_tokens=12, do_sample=False, pad_token_id=EOS, **more
    )
    answer: list[int] = made[0, len(ids) :].tolist()
    return answer


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny.causal("llama", tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("architecture", ["gemma2", "gpt2"])
def test_batch_generates_what_transformers_generates_for_each_alone(
    architecture: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkpoint = tiny.causal(architecture, tmp_path_factory.mktemp(architecture))
    network = generator(checkpoint)
    assert network.cost is BatchLayout.PADDED
    assert rows(network, *PROMPTS) == [[plain(checkpoint, ids)] for ids in PROMPTS]


def test_answer_ends_with_the_end_token_and_counts_its_tokens(llama: Checkpoint) -> None:
    answer = plain(llama, PROMPTS[0])
    end = answer[3]
    network = generator(llama).with_settings(GenerationSettings(12), (end,))
    num_tokens = answer.index(end) + 1
    assert rows(network, PROMPTS[0]) == [[answer[:num_tokens]]]
    output = network.forward(inputs(PROMPTS[0]))
    assert list(output.num_computed) == [len(PROMPTS[0]) + num_tokens]


def test_repetition_penalty_of_the_checkpoint_applies_and_its_sampling_does_not(
    llama: Checkpoint,
) -> None:
    network = generator(llama)
    model = network._model
    model.generation_config = hf.GenerationConfig(
        repetition_penalty=1.5, do_sample=True, temperature=0.4, top_k=3, eos_token_id=EOS
    )
    network = TextGenerator(model).with_settings(GenerationSettings(12))
    expected = [[plain(llama, ids, repetition_penalty=1.5)] for ids in PROMPTS]
    assert rows(network, *PROMPTS) == expected


def test_sampled_answers_depend_on_seed_and_sample_but_not_on_the_batch(llama: Checkpoint) -> None:
    sampling = {"num_answers": 3, "temperature": 1.0}
    network = generator(llama, **sampling)
    together = rows(network, *PROMPTS)
    assert together == [rows(network, ids)[0] for ids in PROMPTS]
    assert len({tuple(row) for row in together[0]}) == 3
    assert rows(generator(llama, **sampling, seed=1), *PROMPTS) != together


def test_sampled_tokens_follow_the_distribution_at_the_temperature(llama: Checkpoint) -> None:
    network = generator(llama, max_new_tokens=1, num_answers=1000, temperature=0.5)
    with torch.inference_mode():
        logits = llama.model(torch.tensor([PROMPTS[0]])).logits[0, -1]
    likely = int(logits.argmax())
    share = (network.forward(inputs(PROMPTS[0]))[0] == likely).float().mean().item()
    expected = (logits / 0.5).softmax(-1)[likely].item()
    assert 0.05 < expected < 0.99
    # Five deviations of 1000 draws.
    assert abs(share - expected) < 5 * (expected * (1 - expected) / 1000) ** 0.5


def test_row_of_numbers_that_are_not_finite_is_marked_and_others_are_not(
    llama: Checkpoint,
) -> None:
    network = generator(llama)
    with torch.no_grad():
        network._model.model.embed_tokens.weight[PROMPTS[2][-1]] = torch.nan
    (good,), (bad,) = rows(network, PROMPTS[0], PROMPTS[2])
    assert bad[0] == NOT_FINITE
    assert good == plain(llama, PROMPTS[0])


def test_cancelled_generation_ends_before_its_next_token(llama: Checkpoint) -> None:
    network = generator(llama, max_new_tokens=400)
    asked = 0

    def is_cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked == 4

    with cancellable(is_cancelled), pytest.raises(Cancelled):
        network.forward(inputs(PROMPTS[0]))
    assert asked == 4


def test_model_without_language_head_is_refused(llama: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="LlamaModel is not a causal model"):
        TextGenerator(llama.model.model)
