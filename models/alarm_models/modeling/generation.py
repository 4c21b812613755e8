"""Generation of text by causal models: answers to each sample of a batch, greedy or sampled."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    PreTrainedModel,
    StoppingCriteria,
)

from alarm_models.cancellation import check_cancelled
from alarm_models.errors import CheckpointError
from alarm_models.modeling.backend_selection import is_near
from alarm_models.modeling.heads import Pooling
from alarm_models.modeling.inputs import BatchLayout, ForwardOutput, ModelInput
from alarm_models.modeling.packed.positions import lengths_of
from alarm_models.modeling.padded import pad_token_id

__all__ = ["NOT_FINITE", "NO_TOKEN", "GenerationSettings", "TextGenerator"]

#: Fills the rows of answers that are shorter than the longest.
NO_TOKEN = -1

#: Begins the row of an answer for which the model gave a number that is not finite.
NOT_FINITE = -2

#: Keys of a checkpoint's generation_config.json that apply also to greedy answers.
_KEPT = ("repetition_penalty", "suppress_tokens")

#: Lengths of the prompts that are probed, and the number of tokens that follow them.
_PROBED_LENGTHS = (4, 11, 27)
_PROBED_TOKENS = 3


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How many answers are generated, of at most how many tokens, and how tokens are chosen.

    At temperature 0 it is the most likely token. Otherwise tokens are drawn with random numbers
    that depend on ``seed``, the sample's tokens and the number of the answer, and on nothing else.
    """

    max_new_tokens: int
    num_answers: int = 1
    temperature: float = 0.0
    seed: int = 0

    def cost_of(self, num_tokens: int) -> int:
        """Return the tokens that generation may add to a sample of that many tokens."""
        return self.num_answers * (num_tokens + self.max_new_tokens) - num_tokens


_ONE_TOKEN = GenerationSettings(1)


class TextGenerator:
    """A causal model that generates answers; its outputs are their token ids, a row per answer.

    Samples are padded on the left where a probe shows that this is exact, and run one at a time
    otherwise. ``end_ids`` end an answer, besides those of the checkpoint.
    """

    num_outputs = 0
    pooling: Pooling | None = Pooling.OWN
    max_positions: int | None = None

    def __init__(
        self,
        model: PreTrainedModel,
        settings: GenerationSettings = _ONE_TOKEN,
        end_ids: Sequence[int] = (),
        cost: BatchLayout | None = None,
    ) -> None:
        if not model.can_generate():
            raise CheckpointError(
                f"{type(model).__name__} is not a causal model that generates text"
            )
        self._model: Any = model
        self._settings = settings
        self.config: Any = model.config.get_text_config()
        self.dtype = model.dtype
        self._lengths = lengths_of(model)
        self.stateful = model if self._lengths.is_stateful else None
        own = _own_generation_config(model)
        own_ends = own.eos_token_id
        ends = [own_ends] if isinstance(own_ends, int) else list(own_ends or ())
        self._end_ids = tuple(dict.fromkeys([*ends, *end_ids]))
        self._config = own
        self.cost = self._probed_cost() if cost is None else cost
        self.execution = f"layout={self.cost.value}"

    def with_settings(
        self, settings: GenerationSettings, end_ids: Sequence[int] = ()
    ) -> TextGenerator:
        """Return a generator of other answers by the same model, whose weights they share."""
        return TextGenerator(self._model, settings, end_ids, self.cost)

    @property
    def settings(self) -> GenerationSettings:
        """How answers are generated."""
        return self._settings

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return self._end_ids

    @torch.inference_mode()
    def forward(self, batch: Sequence[ModelInput]) -> ForwardOutput:
        """Generate the answers to a batch; raise `Cancelled` once they are not wanted.

        The rows of a sample are token ids, ``[answers, tokens]``, with the token that ends an
        answer, and `NO_TOKEN` after it. A row of numbers that are not finite begins with
        `NOT_FINITE`.
        """
        rows: dict[int, torch.Tensor] = {}
        for part in self._parts(batch):
            rows |= zip(part, self._answers([batch[index].ids for index in part]), strict=True)
        answers = [rows[index] for index in range(len(batch))]
        num_computed = [_num_computed(one, rows[index]) for index, one in enumerate(batch)]
        return ForwardOutput(answers, num_computed)

    def clear_prefix_cache(self) -> None:
        """Do nothing: there is no prefix cache."""

    def _parts(self, batch: Sequence[ModelInput]) -> list[list[int]]:
        """Return the samples that run together: those of the same rotary frequencies throughout."""
        if self.cost is BatchLayout.SINGLE:
            return [[index] for index in range(len(batch))]
        parts: dict[object, list[int]] = {}
        for index, one in enumerate(batch):
            first = self._lengths.of(len(one.ids))
            last = self._lengths.of(len(one.ids) + self._settings.max_new_tokens)
            parts.setdefault(first if first == last else (index,), []).append(index)
        return list(parts.values())

    def _answers(self, prompts: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
        """Generate the answers to prompts in one batch, ``[answers, tokens]`` each."""
        settings = self._settings
        finite = _FiniteScores()
        processors: list[LogitsProcessor] = [finite]
        if settings.temperature > 0:
            seeds = [
                _seed(settings.seed, ids, index)
                for ids in prompts
                for index in range(settings.num_answers)
            ]
            processors.append(_SeededSampling(seeds, settings.temperature, self._model.device))
        repeated = [ids for ids in prompts for _ in range(settings.num_answers)]
        generated = self._generate(repeated, settings.max_new_tokens, processors).cpu()
        ended = _until_end(generated, self._end_ids)
        num_tokens = (ended != NO_TOKEN).sum(-1)
        ended[finite.num_finite.cpu() < num_tokens, 0] = NOT_FINITE
        return list(torch.split(ended, settings.num_answers))

    def _generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        max_new_tokens: int,
        processors: Sequence[LogitsProcessor] = (),
        **more: Any,
    ) -> Any:
        """Run transformers' generation; return the new tokens, or what ``more`` asks for."""
        self._lengths.begin()
        longest = max(map(len, prompts))
        # Padding is masked. A prompt's own first token is used, so that penalties for tokens that
        # occur in it are the same as without padding.
        padded = [[ids[0]] * (longest - len(ids)) + list(ids) for ids in prompts]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
        device = self._model.device
        output = self._model.generate(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=self._config,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(self._end_ids) or None,
            pad_token_id=self._end_ids[0] if self._end_ids else 0,
            logits_processor=list(processors),
            stopping_criteria=[_UntilCancelled()],
            **more,
        )
        return output if more else output[:, longest:]

    @torch.inference_mode()
    def _probed_cost(self) -> BatchLayout:
        """Return whether samples may be padded; raise `CheckpointError` if nothing is generated.

        The logits of the first tokens after prompts of several lengths must be those of each alone.
        """
        prompts = _probed_prompts(self.config, self._end_ids)
        try:
            alone = torch.cat([self._probed_logits([ids]) for ids in prompts])
        except Exception as error:  # a custom class may raise anything
            raise CheckpointError(
                f"{type(self._model).__name__} generates no text: {type(error).__name__}: "
                f"{str(error)[:300]}"
            ) from error
        try:
            together = self._probed_logits(prompts)
        except (ValueError, RuntimeError, TypeError, NotImplementedError, IndexError):
            return BatchLayout.SINGLE
        is_exact = is_near(together, alone, self.dtype)
        return BatchLayout.PADDED if is_exact else BatchLayout.SINGLE

    def _probed_logits(self, prompts: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Return the logits of the tokens after each prompt, ``[prompts * tokens, vocabulary]``."""
        forced = [ids[:_PROBED_TOKENS] for ids in prompts]
        output = self._generate(
            prompts,
            _PROBED_TOKENS,
            [_ForcedTokens(forced)],
            output_logits=True,
            return_dict_in_generate=True,
        )
        return torch.stack(output.logits, 1).flatten(0, 1).float().cpu()


def _own_generation_config(model: Any) -> GenerationConfig:
    """Return what applies of a checkpoint's generation configuration, and make it the model's.

    transformers fills in what a configuration leaves out from the model's, such as a temperature.
    """
    given = model.generation_config
    kept = {key: getattr(given, key, None) for key in _KEPT}
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=given.eos_token_id,
        bos_token_id=given.bos_token_id,
        disable_compile=True,
        **{key: one for key, one in kept.items() if one is not None},
    )
    model.generation_config = config
    return config


def _probed_prompts(config: Any, end_ids: Sequence[int]) -> list[tuple[int, ...]]:
    """Return prompts of plain token ids, of several lengths."""
    special = {pad_token_id(config), getattr(config, "bos_token_id", None), *end_ids}
    choose = torch.Generator().manual_seed(0)
    ids: list[int] = torch.randint(int(config.vocab_size), (200,), generator=choose).tolist()
    plain = [one for one in ids if one not in special] or [0] * 200
    return [tuple(plain[start : start + start]) for start in _PROBED_LENGTHS]


def _seed(seed: int, ids: Sequence[int], answer: int) -> int:
    """Return the seed of one answer to one sample."""
    content = repr((seed, tuple(ids), answer)).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) >> 1


def _until_end(generated: torch.Tensor, end_ids: Sequence[int]) -> torch.Tensor:
    """Replace what follows the first end of each row by `NO_TOKEN`, ``[rows, tokens]``."""
    is_end = torch.isin(generated, torch.tensor(list(end_ids), dtype=generated.dtype))
    num_ends_before = is_end.long().cumsum(-1) - is_end.long()
    return generated.masked_fill(num_ends_before > 0, NO_TOKEN)


def _num_computed(features: ModelInput, answers: torch.Tensor) -> int:
    """Count the tokens of a sample that were computed: its prompt per answer, and the answers."""
    return len(answers) * len(features.ids) + int((answers != NO_TOKEN).sum())


class _FiniteScores(LogitsProcessor):
    """Counts the tokens of each row before a NaN or an infinity, ``[rows]``.

    A token that is ruled out has minus infinity.
    """

    def __init__(self) -> None:
        self.num_finite = torch.zeros(1, dtype=torch.long)
        self._is_finite = torch.ones(1, dtype=torch.bool)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores unchanged, ``[rows, vocabulary]``."""
        highest = scores.amax(-1)  # NaN where there is any
        self._is_finite = self._is_finite.to(scores.device) & highest.isfinite()
        self.num_finite = self.num_finite.to(scores.device) + self._is_finite
        return scores


class _SeededSampling(LogitsProcessor):
    """Draws the next token of each row with the row's own random numbers.

    The largest of probabilities divided by exponentially distributed numbers is a sample of the
    distribution (the exponential race), so that a greedy choice of the result is a draw.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self._temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return what the next token of each row is the maximum of, ``[rows, vocabulary]``."""
        probabilities = (scores.float() / self._temperature).softmax(-1)
        noise = torch.empty_like(probabilities)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return probabilities / noise


class _ForcedTokens(LogitsProcessor):
    """Chooses the given tokens of each row, one after another."""

    def __init__(self, tokens: Sequence[Sequence[int]]) -> None:
        self._tokens = [list(row) for row in tokens]
        self._step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores whose maximum is the next given token, ``[rows, vocabulary]``."""
        forced = torch.full_like(scores, -torch.inf)
        for row, tokens in enumerate(self._tokens):
            forced[row, tokens[self._step]] = 0
        self._step += 1
        return forced


class _UntilCancelled(StoppingCriteria):
    """Raises `Cancelled` before the next token once the caller has left."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """Stop no row."""
        check_cancelled()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
