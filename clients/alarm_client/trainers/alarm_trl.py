"""The ALaRM paper's own TRL fork: `PPOTrainer.step(queries, responses, scores)`, dense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alarm_client.short_responses import punish_each
from alarm_client.trainers._columns import rows_of, with_rows
from alarm_client.trainers._dense import plain_ids, token_rewards, token_sample
from alarm_client.trainers._inputs import prompt_of
from alarm_client.trainers._padding import left_aligned
from alarm_client.trainers._settings import TrainerDefaults
from alarm_client.trainers._source import get_reward_source

if TYPE_CHECKING:
    import torch

    from alarm_client.trainers._padding_check import PaddingCheck

__all__ = ["DEFAULTS", "check_trainer", "place", "token_scores"]

DEFAULTS = TrainerDefaults(
    "alarm_trl", timeout=480.0, aspects="admitted", references=("reference",)
)
HABITS = DEFAULTS  # former name, kept as an alias


def token_scores(
    prompts: Sequence[Any],
    responses: Sequence[Any],
    tokenizer: Any,
    too_short_weight: float | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    **settings: Any,
) -> list[torch.Tensor]:
    """One 1-D tensor of token rewards per response, unplaced, as in the paper's code.

    `responses`: ids as `generate` returns them; the decoder's start token gets no reward.
    `too_short_weight`: the recipe's holistic weight, for the paper's rule that a response of at
    most two ids gets -10 times that weight; None disables the rule. `columns`: dataset columns for
    `fields`, one value per response each.
    """
    import torch

    source = get_reward_source(DEFAULTS, settings)
    ids = [plain_ids(response)[1:] for response in responses]
    samples = [
        token_sample(prompt_of(prompt), row, tokenizer)
        for prompt, row in zip(prompts, ids, strict=True)
    ]
    samples = with_rows(samples, rows_of(columns or {}, len(samples)), source.settings)
    rewards = source.rewards(samples)
    if too_short_weight is not None:
        rewards = list(punish_each(rewards, [len(one) for one in responses], too_short_weight))
    rows = token_rewards(rewards, [len(row) for row in ids], source.settings.on_failure)
    return [torch.tensor(row) for row in rows]


def place(scores: Sequence[torch.Tensor], width: int | None = None) -> list[torch.Tensor]:
    """The scores padded with zeros on the right, so that the fork's padding does not move them.

    The fork pads scores on the *left* but responses on the right: all but the longest lose their
    last rewards. `width`: the length of the longest response without its start token, over all
    processes, as the fork pads to that.
    """
    import torch

    rows = left_aligned([score.tolist() for score in scores], width)
    return [torch.tensor(row) for row in rows]


def check_trainer(
    trainer: Any, queries: Sequence[torch.Tensor], responses: Sequence[torch.Tensor]
) -> dict[str, list[PaddingCheck]]:
    """Check whether *this* PPOTrainer keeps the last token's reward, unplaced and placed.

    Runs the trainer's forward pass, `compute_rewards` and mask, with a marked reward per response.
    """
    import torch

    from alarm_client.trainers._padding_check import check_padding

    def pad(rows: Sequence[Sequence[float]], placed: bool) -> tuple[Any, Any]:
        scores = [torch.tensor(row, device=trainer.current_device) for row in rows]
        if placed:
            scores = [score.to(trainer.current_device) for score in place(scores)]
        inputs = trainer.prepare_model_inputs(queries, responses)
        with torch.no_grad():
            logprobs, _, _, masks = trainer.batched_forward_pass(
                trainer.model, queries, responses, inputs
            )
            # Equal log-probabilities give a KL of 0, so that only the scores remain.
            rewards, _ = trainer.compute_rewards(scores, logprobs, logprobs, masks)
        return (rewards * masks).tolist(), masks.tolist()

    lengths = [len(response) - 1 for response in responses]
    return {
        "as they are": check_padding(lambda rows: pad(rows, False), lengths),
        "placed": check_padding(lambda rows: pad(rows, True), lengths),
    }
