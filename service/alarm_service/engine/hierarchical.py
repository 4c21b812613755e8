"""Hierarchical rewards: holistic scores, aspects of admitted samples, then the rule."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, TypeVar

from alarm_models.cancellation import check_cancelled, gather_or_cancel
from alarm_models.combination.all_rules import RuleParams
from alarm_models.combination.overlong import punished
from alarm_models.combination.rewards import (
    AspectRule,
    HolisticDecision,
    ScoredSample,
    aspect_reward,
    combine_rewards,
    decide,
    normalized_score,
    validate_groups,
    weighted_parts,
)
from alarm_models.errors import SampleError
from alarm_models.recipe.schema import Overrides, Recipe
from alarm_models.types import AspectReward, JudgeUsage, Reward, Sample, Score
from alarm_service.engine.engine import RewardEngine
from alarm_service.engine.fair_queueing import INTERNAL, Caller
from alarm_service.engine.group_assembler import GroupAnswer, GroupVisit
from alarm_service.engine.group_state import GroupPlan, identities_of, plan_groups
from alarm_service.engine.model_set import LoadedModel, ModelSet, compares_samples
from alarm_service.engine.pipeline import ModelScores
from alarm_service.engine.scheduler import TimedOut
from alarm_service.errors import Overloaded, ServiceError
from alarm_service.observability.recent import KeptTexts
from alarm_service.observability.reward_metrics import (
    AspectObservation,
    RewardMetrics,
    RewardObservation,
)

__all__ = [
    "CollectedScores",
    "RequestRecipe",
    "Rewards",
    "SampleScorer",
    "ScoreCollector",
    "reward_admitted",
    "reward_samples",
]

Outcome = Score | SampleError


@dataclass(frozen=True, slots=True)
class RequestRecipe:
    """A recipe with one request's overrides: resolved once, used by every step of the request."""

    recipe: Recipe
    overrides: Overrides
    params: RuleParams
    aspect_rules: Mapping[str, AspectRule]
    #: The aspects that the rule uses where aspects count.
    needed: frozenset[str]

    @classmethod
    def resolve(cls, recipe: Recipe, overrides: Overrides) -> RequestRecipe:
        """Apply the overrides; raise `RecipeError` where the recipe cannot have them."""
        params = recipe.rule_params(overrides)
        return cls(
            recipe,
            overrides,
            params,
            {name: recipe.aspect_rule(name, overrides.shaping) for name in recipe.aspects},
            frozenset(name for name in recipe.aspects if params.needs_aspect(name)),
        )

    @property
    def compares_samples(self) -> bool:
        """Whether a model that the rule needs compares the samples of a group."""
        aspects = (self.recipe.aspects[name].model for name in self.needed)
        names = (self.recipe.holistic.model, *aspects)
        return any(compares_samples(self.recipe.models[name]) for name in names)

    def group_plan(self, samples: Sequence[Sample]) -> GroupPlan | None:
        """Find the groups that other requests complete; None where there is none."""
        if not (self.params.definition.compares_groups or self.compares_samples):
            return None
        plan = plan_groups(samples, self.params)
        return plan if plan.group_sizes or plan.errors else None

    def combine(self, scored: Sequence[ScoredSample]) -> list[Reward | SampleError]:
        """Combine scores by the rule; completions that the policy's limit ended are punished."""
        rewards = combine_rewards(scored, self.params)
        if self.recipe.overlong is None:
            return rewards
        return punished(rewards, [one.sample for one in scored], self.recipe.overlong)

    def fault(self, sample: Sample) -> SampleError | None:
        """Say why a sample gets no reward whatever it scores; None if it may have one."""
        overlong = self.recipe.overlong
        return (overlong and overlong.fault(sample)) or _lost_tokens(sample)


def _lost_tokens(sample: Sample) -> SampleError | None:
    """Return an error if a sample has a text, and no tokens that could get its reward."""
    if sample.token_offsets is None or sample.token_offsets or not sample.completion_text.strip():
        return None
    return SampleError(
        "invalid_sample",
        "token_offsets is empty, and the completion is not: send a span for each of its tokens, or "
        "omit token_offsets to get the reward as one number",
    )


@dataclass(frozen=True, slots=True)
class CollectedScores:
    """The scores of a recipe's models by sample index, or the error of a failed sample.

    A holistic score comes with its decision: whether the sample is past the threshold, and whether
    its aspects count.
    """

    holistic: Mapping[int, HolisticDecision | SampleError]
    aspects: Mapping[str, Mapping[int, Outcome]]
    references: Mapping[int, Outcome]


@dataclass(slots=True)
class SampleScorer:
    """Scores one request's samples, each once by each model, and counts the tokens.

    Models of one `pass_key` share forward passes: the first that has to run a sample reads it for
    the others too, where they have the same tokens of it. The models in ``segmenters`` are asked
    for the scores of prefixes too, of samples with policy tokens to place them on.
    """

    engine: RewardEngine
    samples: Sequence[Sample]
    caller: Caller = INTERNAL
    segmenters: Mapping[LoadedModel, str] = field(default_factory=dict)
    num_tokens: int = 0
    num_computed_tokens: int = 0
    judge_usage: JudgeUsage | None = None
    _known: dict[LoadedModel, dict[int, Outcome]] = field(default_factory=dict)
    #: What passes gave of other models, until it is asked for.
    _by_products: dict[LoadedModel, dict[int, Outcome]] = field(default_factory=dict)
    _has_timed_out: bool = False

    async def score(
        self,
        models: Collection[LoadedModel],
        indices: Sequence[int],
        soon: Collection[LoadedModel] = (),
    ) -> dict[LoadedModel, dict[int, Outcome]]:
        """Score some of the samples with models, as far as they are not scored yet.

        Models that may be asked ``soon`` for some of these samples are read off the same passes.
        """
        groups: dict[Hashable, list[LoadedModel]] = {}
        for model in models:
            key = model.pass_key
            groups.setdefault(id(model) if key is None else key, []).append(model)
        await gather_or_cancel(
            *(
                self._score_group(group, [one for one in soon if one not in group], indices)
                for group in groups.values()
            )
        )
        return {model: {at: self._known[model][at] for at in indices} for model in models}

    async def score_apart(self, model: LoadedModel, samples: Sequence[Sample]) -> Sequence[Outcome]:
        """Score samples that are not the request's own."""
        return (await self._scores(model, samples)).outcomes

    async def _score_group(
        self, group: Sequence[LoadedModel], soon: Sequence[LoadedModel], indices: Sequence[int]
    ) -> None:
        """Score samples with models of one `pass_key`, one after another."""
        for place, model in enumerate(group):
            known = self._known.setdefault(model, {})
            known |= self._take(model, [index for index in indices if index not in known])
            left = [index for index in indices if index not in known]
            if not left:
                continue
            key = model.pass_key
            others = [] if key is None else [one for one in soon if one.pass_key == key]
            others = [*group[place + 1 :], *others]
            if self.segmenters:  # passes over prefixes serve one model
                is_plain = model not in self.segmenters
                others = [one for one in others if is_plain and one not in self.segmenters]
            scores = await self._scores(
                model, [self._sample_for(model, index) for index in left], others
            )
            known |= zip(left, scores.outcomes, strict=True)
            for other, found in scores.shared.items():
                more = {left[at]: outcome for at, outcome in found.items()}
                self._by_products[other] = self._by_products.get(other, {}) | more

    def _sample_for(self, model: LoadedModel, index: int) -> Sample:
        sample, segmenter = self.samples[index], self.segmenters.get(model)
        if segmenter is None or not sample.token_offsets:
            return sample
        return replace(sample, prefix_segmenter=segmenter)

    def _take(self, model: LoadedModel, indices: Sequence[int]) -> dict[int, Outcome]:
        """Take what other models' passes gave of a model, and count it."""
        there = self._by_products.get(model, {})
        taken = {index: there.pop(index) for index in indices if index in there}
        self.engine.count(model.name, list(taken.values()))
        for outcome in taken.values():
            self.num_tokens += outcome.num_tokens if isinstance(outcome, Score) else 0
        return taken

    async def _scores(
        self, model: LoadedModel, samples: Sequence[Sample], others: Sequence[LoadedModel] = ()
    ) -> ModelScores:
        try:
            scores = await self.engine.score_admitted(model, samples, self.caller, others)
        except ServiceError as error:
            if not self._has_timed_out:
                raise
            # A client that is told to retry would send again the sample that timed out.
            fault = SampleError("model_failed", f"not scored: {error.message}")
            return ModelScores([fault] * len(samples), model.name, model.fingerprint)
        self._has_timed_out |= any(isinstance(one, TimedOut) for one in scores.outcomes)
        self.num_tokens += scores.num_tokens
        self.num_computed_tokens += scores.num_computed_tokens
        if scores.judge_usage is not None:
            self.judge_usage = (self.judge_usage or JudgeUsage()) + scores.judge_usage
        return scores


@dataclass(frozen=True, slots=True)
class ScoreCollector:
    """Scores one request's samples with a recipe's models, each model asked once for a sample."""

    model_set: ModelSet
    request: RequestRecipe
    scorer: SampleScorer
    #: The groups that other requests complete.
    awaited: frozenset[str] = frozenset()

    async def collect(self, *, every_aspect: bool) -> CollectedScores:
        """Score what the rule needs; with ``every_aspect``, all aspects of all samples too."""
        recipe, params = self.request.recipe, self.request.params
        samples = self.scorer.samples
        found = validate_groups([sample.group for sample in samples], params)
        errors = [
            self.request.fault(sample) or (None if sample.group in self.awaited else error)
            for sample, error in zip(samples, found, strict=True)
        ]
        valid = [index for index, error in enumerate(errors) if error is None]
        invalid = {index: error for index, error in enumerate(errors) if error is not None}
        holistic = self._model(recipe.holistic.model)
        wanted = recipe.aspects if every_aspect else self.request.needed
        by_aspect = {name: self._model(recipe.aspects[name].model) for name in wanted}
        named = dict.fromkeys([holistic, *(by_aspect[name] for name in sorted(by_aspect))])
        comparing = [
            one for one in named if compares_samples(one.served.spec) and one is not holistic
        ]
        models = [one for one in named if one not in comparing]
        references, _ = await gather_or_cancel(
            self._references(holistic, valid if params.definition.needs_reference else ()),
            self.scorer.score(models if every_aspect else [holistic], valid, soon=models),
        )
        decisions = self._decisions(await self._outcomes(holistic, recipe.holistic.output, valid))
        counted = valid
        if not every_aspect:
            counted = [index for index in valid if _aspects_count(decisions[index])]
        if not counted:
            return CollectedScores(invalid | decisions, {}, references)
        # Which samples are compared does not depend on whether their aspects count.
        compared = [index for index in valid if isinstance(decisions[index], HolisticDecision)]
        await gather_or_cancel(
            self.scorer.score(models, counted), self.scorer.score(comparing, compared)
        )
        both = [index for index in counted if isinstance(decisions[index], HolisticDecision)]
        aspects = {
            name: await self._outcomes(
                by_aspect[name], spec.output, both if by_aspect[name] in comparing else counted
            )
            for name, spec in recipe.aspects.items()
            if name in by_aspect
        }
        return CollectedScores(invalid | decisions, aspects, references)

    async def _references(self, model: LoadedModel, indices: Sequence[int]) -> dict[int, Outcome]:
        """Score the reference completions of samples that have one, each text once."""
        samples = self.scorer.samples
        if not any("reference" in samples[index].fields for index in indices):
            return {}
        # Off the event loop: samples may have any number of fields.
        same_as = await self.scorer.engine.combining_threads.run(
            partial(self._first_with_same_reference, indices)
        )
        unique = [index for index, first in same_as.items() if index == first]
        completed = {index: _with_reference(samples[index]) for index in unique}
        valid = {at: one for at, one in completed.items() if isinstance(one, Sample)}
        scores = await self.scorer.score_apart(model, list(valid.values()))
        output = self.request.recipe.holistic.output
        found = {at: one for at, one in completed.items() if isinstance(one, SampleError)} | {
            at: _output(score, output) for at, score in zip(valid, scores, strict=True)
        }
        return {index: found[first] for index, first in same_as.items()}

    def _first_with_same_reference(self, indices: Sequence[int]) -> dict[int, int]:
        """Return, for each sample with a reference, the first sample of the same texts."""
        first: dict[object, int] = {}
        same_as: dict[int, int] = {}
        for index in indices:
            check_cancelled()
            sample = self.scorer.samples[index]
            if "reference" in sample.fields:
                key = (sample.prompt, json.dumps(sample.fields, sort_keys=True))
                same_as[index] = first.setdefault(key, index)
        return same_as

    def _model(self, name: str) -> LoadedModel:
        return self.model_set.model_of(self.request.recipe, name)

    async def _outcomes(
        self, model: LoadedModel, output: str | None, indices: Sequence[int]
    ) -> dict[int, Outcome]:
        """Return a model's scores of samples that are scored, or one output of them."""
        scores = await self.scorer.score([model], indices)
        return {index: _output(one, output) for index, one in scores[model].items()}

    def _decisions(
        self, scores: Mapping[int, Outcome]
    ) -> dict[int, HolisticDecision | SampleError]:
        return {index: self._decision(score) for index, score in scores.items()}

    def _decision(self, score: Outcome) -> HolisticDecision | SampleError:
        if isinstance(score, SampleError):
            return score
        try:
            return decide(score, self.request.params)
        except SampleError as error:
            return error


def _aspects_count(decision: HolisticDecision | SampleError) -> bool:
    return isinstance(decision, HolisticDecision) and decision.aspects_count


def _output(outcome: Outcome, name: str | None) -> Outcome:
    try:
        return outcome if isinstance(outcome, SampleError) else outcome.output(name)
    except SampleError as error:
        return error


def _with_reference(sample: Sample) -> Sample | SampleError:
    """Return the sample with its reference in place of the completion."""
    try:
        reference = sample.field_text("reference")
    except SampleError as error:
        return error
    return replace(sample, completion=reference, token_offsets=None, segments={})


@dataclass(frozen=True, slots=True)
class Rewards:
    """One reward or error per sample, in order, with the recipe used and the cost in tokens."""

    recipe: Recipe
    params: RuleParams
    fingerprint: str
    rewards: Sequence[Reward | SampleError]
    num_tokens: int
    num_computed_tokens: int
    judge_usage: JudgeUsage | None = None


@dataclass(frozen=True, slots=True)
class _RewardComputation:
    """Combines the scores of one request's samples into rewards."""

    request: RequestRecipe
    samples: Sequence[Sample]
    scores: CollectedScores

    def rewards(self) -> list[Reward | SampleError]:
        """Combine each sample's scores; a sample without a score that it needs gets its error."""
        rewards = self.rewards_of(range(len(self.samples)))
        return [rewards[index] for index in range(len(self.samples))]

    def rewards_of(self, indices: Sequence[int]) -> dict[int, Reward | SampleError]:
        """Combine the scores of some samples, without regard to the others."""
        outcomes = self.scored(indices)
        scored = {at: one for at, one in outcomes.items() if isinstance(one, ScoredSample)}
        rewards: dict[int, Reward | SampleError] = {
            at: one for at, one in outcomes.items() if isinstance(one, SampleError)
        }
        combined = self.request.combine(list(scored.values()))
        return rewards | dict(zip(scored, combined, strict=True))

    def scored(self, indices: Sequence[int]) -> dict[int, ScoredSample | SampleError]:
        """Return what the rewards of some samples are made of, or why one has no reward."""
        outcomes: dict[int, ScoredSample | SampleError] = {}
        for index in indices:
            try:
                outcomes[index] = self._scored(index)
            except SampleError as error:
                outcomes[index] = error
        return outcomes

    def rewards_with_metrics(self, metrics: RewardMetrics) -> list[Reward | SampleError]:
        """Combine each sample's scores, and record the rewards."""
        rewards = self.rewards()
        _record(self.request, list(zip(self.samples, rewards, strict=True)), metrics)
        return rewards

    def _scored(self, index: int) -> ScoredSample:
        decision = _result(self.scores.holistic[index])
        aspects: dict[str, AspectReward | None] = {}
        for name in self.request.recipe.aspects:
            outcome = self.scores.aspects.get(name, {}).get(index)
            try:
                aspects[name] = None if outcome is None else self._aspect(index, name, outcome)
            except SampleError as error:
                # An aspect that is only logged does not fail the sample.
                if decision.aspects_count and name in self.request.needed:
                    raise SampleError(error.code, f"aspect {name}: {error.message}") from error
                aspects[name] = None
        reference = self.scores.references.get(index)
        reference_z = (
            None if reference is None else normalized_score(_result(reference), self.request.params)
        )
        return ScoredSample(self.samples[index], decision, aspects, reference_z)

    def _aspect(self, index: int, name: str, outcome: Outcome) -> AspectReward:
        rule = self.request.aspect_rules[name]
        aspect = aspect_reward(_result(outcome), rule, self.samples[index])
        if not all(map(math.isfinite, (aspect.reward, *(aspect.token_rewards or ())))):
            raise SampleError("non_finite", "its constants are so large that its reward overflows")
        return aspect


def _record(
    request: RequestRecipe,
    rewarded: Sequence[tuple[Sample, Reward | SampleError]],
    metrics: RewardMetrics,
) -> None:
    """Record rewards and failures of samples in the metrics."""
    observations = []
    for sample, reward in rewarded:
        if isinstance(reward, SampleError):
            metrics.count_failure(request.recipe.name, reward.code)
        else:
            texts = _texts(sample) if metrics.keeps_texts else None
            observations.append(_observation(request, sample, reward, texts))
    metrics.observe_rewards(request.recipe.name, observations)


#: Characters of a text that are kept for the page, with `--log-texts`.
_MAX_KEPT_CHARS = 2000


def _texts(sample: Sample) -> KeptTexts:
    most = _MAX_KEPT_CHARS
    return KeptTexts(sample.prompt_text[:most], sample.completion_text[:most])


def _observation(
    request: RequestRecipe, sample: Sample, reward: Reward, texts: KeptTexts | None
) -> RewardObservation:
    aspects = {}
    for name, aspect in reward.aspects.items():
        if aspect is not None:
            is_sigmoid = request.aspect_rules[name].shaping.is_sigmoid
            aspects[name] = AspectObservation(aspect.reward, aspect.shaped_values, is_sigmoid)
    return RewardObservation(
        prompt=sample.prompt,
        num_characters=len(sample.completion_text),
        reward=reward.reward,
        z=reward.holistic_normalized,
        admitted=reward.admitted,
        truncated=reward.truncated,
        aspects=aspects,
        parts=weighted_parts(reward, request.params),
        omitted=reward.omitted,
        texts=texts,
    )


async def reward_samples(
    engine: RewardEngine,
    name: str | None,
    samples: Sequence[Sample],
    overrides: Overrides,
    aspects: Literal["admitted", "all"],
    caller: Caller = INTERNAL,
) -> Rewards:
    """Reward samples by the recipe of that name, with one request's overrides.

    ``admitted`` computes the aspects that the rewards need and no more; ``all`` computes every
    aspect of every sample and changes no reward. The rewards are captured, if the engine has a
    capture. Raises `ServiceError` and `RecipeError`.
    """
    done = await _reward_samples(engine, name, samples, overrides, aspects, caller)
    if engine.capture is not None:
        recipe = done.recipe
        names = list(recipe.aspects)
        engine.capture.put_rewards(
            samples,
            done.rewards,
            recipe.name,
            names,
            done.fingerprint,
            overrides,
            done.params,
        )
    return done


async def _reward_samples(
    engine: RewardEngine,
    name: str | None,
    samples: Sequence[Sample],
    overrides: Overrides,
    aspects: Literal["admitted", "all"],
    caller: Caller,
) -> Rewards:
    # Before admission, so that a wrong request is refused without waiting for models or capacity.
    request = RequestRecipe.resolve(engine.catalog.recipe(name), overrides)
    plan = request.group_plan(samples)
    if plan is not None:
        call = _GroupCall(engine, name, samples, overrides, aspects, caller)
        return await call.rewards(request, plan)
    async with engine.admit(samples, caller) as model_set:
        recipe = model_set.catalog.recipe(name)
        if recipe is not request.recipe:  # reloaded while this request waited
            request = RequestRecipe.resolve(recipe, overrides)
        scorer = SampleScorer(engine, samples, caller, _segmenters(model_set, request))
        collector = ScoreCollector(model_set, request, scorer)
        scores = await collector.collect(every_aspect=aspects == "all")
        computation = _RewardComputation(request, samples, scores)
        rewards = await engine.combining_threads.run(
            partial(computation.rewards_with_metrics, engine.metrics.rewards)
        )
        return Rewards(
            recipe,
            request.params,
            model_set.fingerprint(recipe, overrides),
            rewards,
            scorer.num_tokens,
            scorer.num_computed_tokens,
            scorer.judge_usage,
        )


@dataclass(frozen=True, slots=True)
class _GroupCall:
    """A request with samples of groups that other requests complete.

    It scores its samples at once, and waits for the others without a place in the queue. Where a
    model compares samples, a group is scored as a whole once its last sample is there.
    """

    engine: RewardEngine
    name: str | None
    samples: Sequence[Sample]
    overrides: Overrides
    aspects: Literal["admitted", "all"]
    caller: Caller
    #: What scored whole groups of which this request had the last sample.
    scorers: list[SampleScorer] = field(default_factory=list)

    async def rewards(self, request: RequestRecipe, plan: GroupPlan) -> Rewards:
        """Return the rewards; samples are scored again if models are reloaded meanwhile."""
        identities = await self.engine.combining_threads.run(
            partial(identities_of, self.samples, plan.group_sizes)
        )
        while True:
            with self.engine.groups.visit() as visit:
                for index, identity in identities.items():
                    name = self.samples[index].group or ""
                    timeout_s = request.recipe.group_timeout_s
                    visit.arrive(index, self._key(request, name), name, identity, timeout_s)
                rewards = await self._visit(visit, request, plan)
            if rewards is not None:
                return rewards
            request = RequestRecipe.resolve(self.engine.catalog.recipe(self.name), self.overrides)
            if request.group_plan(self.samples) != plan:
                # The recipe has another rule since it was reloaded.
                return await _reward_samples(
                    self.engine, self.name, self.samples, self.overrides, self.aspects, self.caller
                )

    def _key(self, request: RequestRecipe, group: str) -> Hashable:
        """Return what the samples of one group have in common."""
        settings = self.overrides.model_dump_json()
        return (self.caller.key, request.recipe.name, settings, self.aspects, group)

    async def _visit(
        self, visit: GroupVisit, request: RequestRecipe, plan: GroupPlan
    ) -> Rewards | None:
        """Score what is not scored yet, and wait; None if all is to be scored again."""
        unscored = visit.unscored()
        whole = [
            index
            for index in range(len(self.samples))
            if index not in plan.group_sizes and index not in plan.errors
        ]
        rewards: dict[int, Reward | SampleError] = dict(plan.errors)
        scored = _Scored("", {}, {}, 0, 0)
        combine = partial(self._combine, request)
        if unscored or whole:
            found = await self._score(request, unscored, whole)
            if found is None:
                return None
            scored = found
            for index, outcome in scored.members.items():
                visit.settle(index, outcome, scored.fingerprint, combine)
        visit.combine_ready(combine)
        answers = await visit.answers()
        if answers is None:
            return None
        fingerprint = scored.fingerprint or _fingerprint(answers)
        if not fingerprint:  # every sample was refused
            await self.engine.life.until_ready()
            fingerprint = self.engine.model_set.fingerprint(request.recipe, self.overrides)
        rewards |= scored.whole
        rewards |= {at: _of_fingerprint(one, fingerprint) for at, one in answers.items()}
        fresh = [at for at in rewards if at not in answers or not answers[at].is_remembered]
        await self.engine.combining_threads.run(
            partial(
                _record,
                request,
                [(self.samples[index], rewards[index]) for index in fresh],
                self.engine.metrics.rewards,
            )
        )
        return Rewards(
            request.recipe,
            request.params,
            fingerprint,
            [rewards[index] for index in range(len(self.samples))],
            scored.num_tokens + sum(one.num_tokens for one in self.scorers),
            scored.num_computed_tokens + sum(one.num_computed_tokens for one in self.scorers),
            _sum_of_usages([scored.judge_usage, *(one.judge_usage for one in self.scorers)]),
        )

    async def _score(
        self, request: RequestRecipe, members: Sequence[int], whole: Sequence[int]
    ) -> _Scored | None:
        """Score members of groups, and reward samples of whole groups; None after a reload.

        Members that are compared with others are not scored yet.
        """
        alone = () if request.compares_samples else members
        indices = sorted([*alone, *whole])
        samples = [self.samples[index] for index in indices]
        at = {index: place for place, index in enumerate(indices)}
        async with self.engine.admit(samples, self.caller) as model_set:
            if model_set.catalog.recipe(self.name) is not request.recipe:
                return None
            segmenters = _segmenters(model_set, request)
            scorer = SampleScorer(self.engine, samples, self.caller, segmenters)
            awaited = frozenset(self.samples[index].group or "" for index in members)
            collector = ScoreCollector(model_set, request, scorer, awaited)
            scores = await collector.collect(every_aspect=self.aspects == "all")
            computation = _RewardComputation(request, samples, scores)
            run = self.engine.combining_threads.run
            outcomes = await run(partial(computation.scored, [at[one] for one in alone]))
            rewards = await run(partial(computation.rewards_of, [at[one] for one in whole]))
            return _Scored(
                model_set.fingerprint(request.recipe, self.overrides),
                {index: self.samples[index] for index in members}
                | {indices[place]: one for place, one in outcomes.items()},
                {indices[place]: one for place, one in rewards.items()},
                scorer.num_tokens,
                scorer.num_computed_tokens,
                scorer.judge_usage,
            )

    async def _combine(
        self, request: RequestRecipe, members: Sequence[ScoredSample | Sample]
    ) -> Sequence[Reward | SampleError]:
        samples = [one for one in members if isinstance(one, Sample)]
        if samples:
            return await self._reward_group(request, samples)
        scored = [one for one in members if isinstance(one, ScoredSample)]
        return await self.engine.combining_threads.run(partial(request.combine, scored))

    async def _reward_group(
        self, request: RequestRecipe, samples: Sequence[Sample]
    ) -> Sequence[Reward | SampleError]:
        """Score and reward a whole group, as if it had come in one request."""
        try:
            async with self.engine.admit(samples, replace(self.caller, waits=True)) as model_set:
                if model_set.catalog.recipe(self.name) is not request.recipe:
                    return [_RELOADED] * len(samples)
                segmenters = _segmenters(model_set, request)
                scorer = SampleScorer(self.engine, samples, self.caller, segmenters)
                collector = ScoreCollector(model_set, request, scorer)
                scores = await collector.collect(every_aspect=self.aspects == "all")
                computation = _RewardComputation(request, samples, scores)
                self.scorers.append(scorer)
                return await self.engine.combining_threads.run(computation.rewards)
        except Overloaded as error:
            return [SampleError("model_failed", f"not scored: {error.message}")] * len(samples)


def _sum_of_usages(usages: Sequence[JudgeUsage | None]) -> JudgeUsage | None:
    known = [usage for usage in usages if usage is not None]
    return sum(known, JudgeUsage()) if known else None


@dataclass(frozen=True, slots=True)
class _Scored:
    """The scores of members of groups and the rewards of other samples, by index."""

    fingerprint: str
    members: Mapping[int, ScoredSample | Sample | SampleError]
    whole: Mapping[int, Reward | SampleError]
    num_tokens: int
    num_computed_tokens: int
    judge_usage: JudgeUsage | None = None


def _fingerprint(answers: Mapping[int, GroupAnswer]) -> str:
    """Return the fingerprint of answers of which none was scored by this request."""
    return next((one.fingerprint for one in answers.values() if one.fingerprint), "")


_RELOADED = SampleError(
    "group_conflict",
    "the recipe was reloaded since this group was complete: send it again by another name",
)


def _of_fingerprint(answer: GroupAnswer, fingerprint: str) -> Reward | SampleError:
    """Return an answer, unless models were reloaded since its group was complete."""
    if answer.fingerprint in (None, fingerprint):
        return answer.reward
    return _RELOADED


async def reward_admitted(
    engine: RewardEngine, model_set: ModelSet, recipe: Recipe, samples: Sequence[Sample]
) -> list[Reward | SampleError]:
    """Reward samples by a model set's recipe, without admission control and without metrics."""
    request = RequestRecipe.resolve(recipe, Overrides())
    scorer = SampleScorer(engine, samples, segmenters=_segmenters(model_set, request))
    collector = ScoreCollector(model_set, request, scorer)
    scores = await collector.collect(every_aspect=False)
    return _RewardComputation(request, samples, scores).rewards()


def _segmenters(model_set: ModelSet, request: RequestRecipe) -> dict[LoadedModel, str]:
    """Return the models that are asked for scores of prefixes, with what cuts completions."""
    recipe = request.recipe
    return {
        model_set.model_of(recipe, name): segmenter
        for name, segmenter in recipe.prefix_segmenters.items()
    }


_Result = TypeVar("_Result")


def _result(outcome: _Result | SampleError) -> _Result:
    if isinstance(outcome, SampleError):
        raise outcome
    return outcome
