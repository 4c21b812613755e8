"""RewardModel, the interface of reward models; its bases for neural and host models."""

from __future__ import annotations

import asyncio
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch

from alarm_models.cancellation import gather_or_cancel
from alarm_models.errors import CheckpointError, RecipeError, SampleError
from alarm_models.modeling.heads import Pooling
from alarm_models.modeling.inputs import BatchLayout, ForwardOutput, ModelInput, TokenSequence
from alarm_models.modeling.network import MODEL_INIT_LOCK, HeadedNetwork, Network
from alarm_models.preprocessing.read_text import ReadSample, ReadText
from alarm_models.preprocessing.segmentation import SUPPORT_TYPES
from alarm_models.preprocessing.shown_sample import SampleView, ViewRules
from alarm_models.preprocessing.tokenizer import Tokenizer
from alarm_models.preprocessing.truncation import Truncation
from alarm_models.recipe.specs import NeuralSpec, Normalization, Spec
from alarm_models.reward_models.thread_pool import Check, CheckThreadPool
from alarm_models.types import EndpointFailure, JudgeTotals, Sample, Score, Shown, Span

__all__ = [
    "CheckModel",
    "HostModel",
    "LoadedCheckpoint",
    "Model",
    "NeuralRewardModel",
    "Outcome",
    "Prepared",
    "RewardModel",
    "can_share_pass",
    "fingerprint_of",
    "gather_limited",
    "max_tokens",
    "num_positions",
    "require_finite",
    "require_outputs",
    "score_shown",
    "view_of",
]

#: More tokens than any sample has.
_NO_LIMIT = 1 << 20

#: The result of one sample.
Outcome = Score | SampleError

#: A prepared sample: input of the device, a score that needs no device, or an error.
Prepared = ModelInput | Score | SampleError


class RewardModel(Protocol):
    """A model in three steps, of which only `forward` needs the device.

    `prepare` and `read` may run in any thread; `forward` runs on the thread that owns the device.
    """

    @property
    def fingerprint(self) -> str:
        """A digest of everything that determines its scores."""

    @property
    def limit(self) -> int | None:
        """The maximum number of tokens of a sample; None if it reads no tokens."""

    @property
    def cost(self) -> BatchLayout:
        """How its batches are laid out."""

    @property
    def dtype(self) -> str | None:
        """The name of the torch dtype that it computes in; None if unknown."""

    def prepare(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Prepare samples, one result per sample, in order."""

    def forward(self, batch: Sequence[ModelInput]) -> ForwardOutput:
        """Run one batch; return output rows and the number of computed tokens per sample."""

    def read(self, features: ModelInput, outputs: torch.Tensor) -> Score:
        """Read a sample's score from its outputs; raise `SampleError` (``non_finite``)."""


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A network and its tokenizer, as loaded from one checkpoint."""

    network: Network
    tokenizer: Tokenizer
    digest: str
    label_names: tuple[str, ...] = ()
    #: The normalization of a sequence classifier's raw score.
    normalization: Normalization | None = None


class NeuralRewardModel(ABC):
    """Base of the kinds with weights: limits and forward pass come from the network."""

    def __init__(self, spec: NeuralSpec, weights: LoadedCheckpoint, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self._view_rules = spec.view_rules
        self._truncation = spec.truncation
        self.limit: int | None = max_tokens(spec, weights)
        self.config: Any = weights.network.config
        self._network = weights.network
        self._tokenizer = weights.tokenizer
        self.pooling: Pooling | None = weights.network.pooling
        #: The token at which a score is read; None if there are several, or it is unknown.
        self.read_token: str | None = None
        #: How batches run: layout, and the kernels of attention and linear layers.
        self.execution: str = weights.network.execution
        #: Sentences on how scores may differ from those of the model's card.
        self.notes: tuple[str, ...] = ()
        #: The tokens of a test sample; models that differ in them share no forward pass.
        self.probe: TokenSequence | None = None

    def prepare(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Make the inputs of the shown samples, one result per sample, in order."""
        views = [view_of(sample, self._view_rules) for sample in samples]
        readable = [view for view in views if isinstance(view, SampleView)]
        prepared = iter(self.prepare_shown([view.sample for view in readable]) if readable else ())
        return [
            _with_shown(next(prepared), view.shown) if isinstance(view, SampleView) else view
            for view in views
        ]

    def read(self, features: ModelInput, outputs: torch.Tensor) -> Score:
        """Read a sample's score from its outputs; raise `SampleError` (``non_finite``).

        Spans are those of the completion as it was sent.
        """
        score = self.read_shown(features, outputs)
        omitted = {*score.omitted, *features.omitted}
        if score.truncated:
            omitted |= self._cut_off(features)
        score = replace(score, omitted=tuple(sorted(omitted)))
        return score if features.shown is None else features.shown.score_of_given(score)

    @abstractmethod
    def prepare_shown(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Make the inputs of samples, one result per sample, in order."""

    @abstractmethod
    def read_shown(self, features: ModelInput, outputs: torch.Tensor) -> Score:
        """Read the score of the shown sample from its outputs."""

    def read_sample(self, sample: Sample) -> ReadSample | SampleError:
        """Return what the model reads of a sample, or why it cannot read it.

        The sample is prepared as for a score, without the prefixes of dense rewards.
        """
        view = view_of(replace(sample, prefix_segmenter=None), self._view_rules)
        if isinstance(view, SampleError):
            return view
        (prepared,) = self.prepare_shown([view.sample])
        if isinstance(prepared, SampleError):
            return prepared
        omitted = {*prepared.omitted, *(view.shown.omitted if view.shown else ())}
        if isinstance(prepared, ModelInput) and prepared.truncated:
            omitted |= self._cut_off(prepared)
        return ReadSample(
            () if isinstance(prepared, Score) else self._texts_of(view.sample, prepared),
            prepared.num_tokens,
            prepared.truncated,
            tuple(sorted(omitted)),
            view.shown,
        )

    def _texts_of(self, _sample: Sample, features: ModelInput) -> tuple[ReadText, ...]:
        """Return the texts of a shown sample, whose input is ``features``."""
        return tuple(ReadText(ids) for ids in features.ids_of_sequences)

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token, as `Tokenizer.token_texts` does."""
        return self._tokenizer.token_texts(ids)

    def token_offsets(self, text: str) -> tuple[Span, ...]:
        """Return the places of a text's tokens, without special tokens.

        Raises `SampleError` (``too_long``).
        """
        _, places = self._tokenizer.encode_alone(text)
        return tuple(place for place in places if place.start < place.end)

    def _cut_off(self, _features: ModelInput) -> set[str]:
        """Return the names in `omitted` of what truncation removed."""
        return {"completion_end" if self._truncation is Truncation.RIGHT else "prompt_start"}

    @property
    def cost(self) -> BatchLayout:
        """How the network lays out batches."""
        return self._network.cost

    @property
    def dtype(self) -> str | None:
        """The precision that the network computes in."""
        return str(self._network.dtype).removeprefix("torch.")

    @property
    def pass_key(self) -> Hashable | None:
        """Equal for models that may share forward passes; None if the model shares none.

        It identifies their shared base and how they render a sample. `can_share_pass` then compares
        the tokens of each sample.
        """
        if self.probe is None or not isinstance(self._network, HeadedNetwork):
            return None
        return self._network.backbone, self.probe.ids, self.probe.token_type_ids

    @property
    def stateful(self) -> Hashable | None:
        """What forward passes change, which models of one checkpoint share; None if nothing.

        No two passes with the same may run at once.
        """
        return self._network.stateful

    def clear_prefix_cache(self) -> None:
        """Free the keys and values of earlier batches."""
        self._network.clear_prefix_cache()

    def forward(self, batch: Sequence[ModelInput]) -> ForwardOutput:
        """Run one batch."""
        with MODEL_INIT_LOCK.shared():
            return self._network.forward(batch)

    def forward_shared(
        self,
        batch: Sequence[ModelInput],
        others: Sequence[tuple[NeuralRewardModel, Sequence[ModelInput | None]]],
    ) -> tuple[ForwardOutput, list[list[torch.Tensor | None]]]:
        """Run one batch, also for other models with the same `pass_key`.

        Each of ``others`` has its own input or None for each sample, and gets its rows of outputs.
        """
        networks = [(_headed(model._network), inputs) for model, inputs in others]
        with MODEL_INIT_LOCK.shared():
            return _headed(self._network).forward_shared(batch, networks)


def view_of(sample: Sample, rules: ViewRules) -> SampleView | SampleError:
    """Return what a model is shown of a sample, or why it cannot be shown."""
    try:
        return rules.view(sample)
    except SampleError as error:
        return error.with_traceback(None)


def _with_shown(prepared: Prepared, shown: Shown | None) -> Prepared:
    if shown is None or isinstance(prepared, SampleError):
        return prepared
    if isinstance(prepared, Score):
        return shown.score_of_given(prepared)
    return replace(prepared, shown=shown)


def _headed(network: Network) -> HeadedNetwork:
    if not isinstance(network, HeadedNetwork):
        raise TypeError("only heads on one base share a forward pass")
    return network


def can_share_pass(own: ModelInput, other: ModelInput, cost: BatchLayout) -> bool:
    """Say whether a pass over one model's input of a sample also serves another model's input.

    Both must have the same tokens. The other must not be read from the first token on unless this
    one is: tokens that are read must be computed, so no prefix could come from the prefix cache.
    """
    if own.further_sequences or other.further_sequences:
        return False
    if (own.ids, own.token_type_ids) != (other.ids, other.token_type_ids):
        return False
    if cost is not BatchLayout.PREFIX_SHARED:
        return True
    return _is_read_at_start(own) or not _is_read_at_start(other)


def _is_read_at_start(features: ModelInput) -> bool:
    return any(span.start == 0 for span in features.read_positions)


def max_tokens(spec: NeuralSpec, weights: LoadedCheckpoint) -> int:
    """Return the maximum number of tokens of a sample: the recipe's, else the checkpoint's."""
    positions = num_positions(weights.network)
    if spec.max_tokens is None:
        return min(positions, weights.tokenizer.model_max_length)
    positions *= _scaling(weights.network)
    if spec.max_tokens > positions:
        raise RecipeError(
            f"max_tokens is {spec.max_tokens}, but {spec.checkpoint} has {positions} positions"
        )
    return spec.max_tokens


def num_positions(network: Network) -> int:
    """Return the limit of the configuration, bounded by the size of the position tables.

    In configurations, -1 (XLNet), 0 and a missing key mean no limit.
    """
    named = getattr(network.config, "max_position_embeddings", None)
    limits = (named if isinstance(named, int) else None, network.max_positions)
    return min((one for one in limits if one is not None and one > 0), default=_NO_LIMIT)


def _scaling(network: Network) -> int:
    """Return the factor by which a recipe may extend the positions (dynamic RoPE)."""
    scaling = getattr(network.config, "rope_parameters", None) or {}
    is_dynamic = network.max_positions is None and "dynamic" in str(scaling.get("rope_type"))
    return max(int(scaling.get("factor") or 1), 1) if is_dynamic else 1


def require_finite(values: Sequence[float]) -> None:
    """Raise `SampleError` (``non_finite``) for a NaN or an infinity."""
    if not all(math.isfinite(value) for value in values):
        raise SampleError("non_finite", "the model gave a number that is not finite")


def require_token_types(spec: NeuralSpec, network: Network) -> None:
    """Raise `CheckpointError` unless the network has the token types of ``mark_copied``."""
    wanted = {False: 0, True: 2, "support": SUPPORT_TYPES}[spec.mark_copied]
    found = getattr(network.config, "type_vocab_size", None) or 0
    if found < wanted:
        value = '"support"' if spec.mark_copied == "support" else "true"
        raise CheckpointError(
            f"mark_copied = {value} sets token types 0 to {wanted - 1}, but {spec.checkpoint} has "
            f"{found or 'none'} (type_vocab_size): leave mark_copied out, or train the checkpoint "
            "with them"
        )


def require_outputs(network: Network, wanted: int, what: str) -> None:
    """Raise `CheckpointError` unless the network has ``wanted`` outputs per read."""
    if network.num_outputs != wanted:
        raise CheckpointError(
            f"{what} requires {wanted} logit{'s' * (wanted > 1)}, the checkpoint has "
            f"{network.num_outputs}; kind `multi-objective` reads any number"
        )


_Part = TypeVar("_Part")
_Scored = TypeVar("_Scored")


class HostModel(ABC):
    """A model that needs no device: a check, a user's function or a remote model."""

    #: The maximum number of tokens of a sample; None if it reads no tokens, or it is unknown.
    limit: int | None = None

    #: The name of the torch dtype that it computes in; None if unknown.
    dtype: str | None = None

    #: Where it runs, as shown in responses.
    device = "none"

    #: Whether a remote server scores; `open` has then checked that it responds.
    is_elsewhere = False

    def __init__(self, fingerprint: str, view_rules: ViewRules | None = None) -> None:
        self._fingerprint = fingerprint
        #: What it is shown of samples; None for everything that callers send.
        self._view_rules = view_rules

    @property
    def fingerprint(self) -> str:
        """A digest of everything known that determines its scores."""
        return self._fingerprint

    @property
    def judge_totals(self) -> JudgeTotals | None:
        """What its judge was asked since it was opened; None if it asks none."""
        return None

    def observe_failures(self, observe: Callable[[EndpointFailure], None]) -> None:
        """Have ``observe`` called, in the event loop, when an endpoint gives no usable answer."""
        return

    def read_sample(self, sample: Sample) -> ReadSample | SampleError:
        """Return what the model is shown of a sample; it reads no tokens that are known here."""
        view = None if self._view_rules is None else view_of(sample, self._view_rules)
        if view is None or isinstance(view, SampleError):
            return ReadSample(()) if view is None else view
        return ReadSample((), omitted=view.shown.omitted if view.shown else (), shown=view.shown)

    async def open(self) -> None:
        """Prepare for scoring, in the event loop that scores; raise `CheckpointError`.

        May be called again after an `UnreachableError`.
        """
        return

    @abstractmethod
    async def score(self, samples: Sequence[Sample]) -> list[Score | SampleError]:
        """Return one result per sample, in order; a sample that cannot be scored fails alone."""

    async def _score_shown(
        self,
        samples: Sequence[Sample],
        score: Callable[[Sequence[Sample]], Awaitable[list[Score | SampleError]]],
    ) -> list[Score | SampleError]:
        """Score what the model is shown of samples."""
        if self._view_rules is None:
            return await score(samples)
        return await score_shown(samples, self._view_rules, score)

    async def close(self) -> None:
        """Release its resources; it cannot score afterwards."""
        return


async def score_shown(
    samples: Sequence[Sample],
    rules: ViewRules,
    score: Callable[[Sequence[Sample]], Awaitable[list[Outcome]]],
) -> list[Outcome]:
    """Score what ``rules`` show of samples; a sample that cannot be shown fails alone."""
    views = [view_of(sample, rules) for sample in samples]
    readable = [view.sample for view in views if isinstance(view, SampleView)]
    scores = iter(await score(readable) if readable else ())
    return [
        _of_given(next(scores), view.shown) if isinstance(view, SampleView) else view
        for view in views
    ]


def _of_given(outcome: Score | SampleError, shown: Shown | None) -> Score | SampleError:
    if shown is None or isinstance(outcome, SampleError):
        return outcome
    return shown.score_of_given(outcome)


#: A loaded model of a recipe.
Model = RewardModel | HostModel


class CheckModel(HostModel):
    """A check that runs on a thread pool, with a time limit per sample.

    ``check_reachable`` raises `UnreachableError` while a server that it needs does not respond.
    """

    def __init__(
        self,
        check: Check,
        pool: CheckThreadPool,
        timeout_s: float,
        fingerprint: str,
        view_rules: ViewRules,
        check_reachable: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(fingerprint, view_rules)
        self._check = check
        self._check_reachable = check_reachable
        self._pool = pool
        self._timeout_s = timeout_s

    async def open(self) -> None:
        """Check that the required server responds."""
        if self._check_reachable is not None:
            await asyncio.to_thread(self._check_reachable)

    async def score(self, samples: Sequence[Sample]) -> list[Score | SampleError]:
        """Check what is shown of each sample."""
        return await self._score_shown(samples, self._run)

    async def _run(self, samples: Sequence[Sample]) -> list[Score | SampleError]:
        return await self._pool.run(self._check, samples, self._timeout_s)

    async def close(self) -> None:
        """Stop the threads."""
        self._pool.close()


async def gather_limited(
    score: Callable[[_Part], Awaitable[_Scored]], parts: Sequence[_Part], at_once: int
) -> list[_Scored]:
    """Score the parts of one request, at most ``at_once`` at a time; results are in order.

    Waiting parts are served in order of arrival. If a large request started all its parts at once,
    it would block all other requests.
    """
    slots = asyncio.Semaphore(at_once)

    async def scored(part: _Part) -> _Scored:
        async with slots:
            return await score(part)

    return await gather_or_cancel(*map(scored, parts))


def fingerprint_of(spec: Spec, *more: object) -> str:
    """Digest a spec and what else determines scores: a library's version, a function's source."""
    own = spec.constants(frozenset({"timeout_s", "workers", "concurrency", "environment"}))
    return hashlib.sha256(f"{own}|{more}".encode()).hexdigest()[:16]
