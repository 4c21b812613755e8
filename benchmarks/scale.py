"""The exponent of the server's own cost: 1 is linear, 2 quadratic.

No model runs. Each cost is measured in processor seconds for a few sizes, each several times; the
exponent is the slope of a line through the logarithms of the medians.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from statistics import linear_regression, median
from typing import NamedTuple

from alarm_models.combination.token_alignment import place_on_tokens, place_on_turns
from alarm_models.modeling.inputs import BatchLayout, ModelInput
from alarm_models.modeling.packed.batch import pack
from alarm_models.recipe.specs import SequenceSpec
from alarm_models.types import Span
from alarm_service.engine.admission import Admission, estimate_tokens
from alarm_service.engine.fair_queueing import Caller
from alarm_service.engine.group_state import AttemptState, GroupState, Identity
from alarm_service.engine.model_set import LoadedModel, ServedModel
from alarm_service.engine.scheduler import QueuedSample, RequestQueue
from alarm_service.errors import Overloaded
from alarm_service.json_pieces import read_json
from alarm_service.schemas import ScoreRequest, sample_in

__all__ = ["COSTS", "Cost", "exponent"]

_BUDGET = 2048


class Cost(NamedTuple):
    """What is measured, over which sizes.

    ``prepare`` makes, from a size, the call that is timed.
    """

    over: str
    sizes: Sequence[int]
    prepare: Callable[[int], Callable[[], object]]


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the exponent of a power of the sizes that the seconds grow with."""
    slope, _ = linear_regression(list(map(math.log, sizes)), list(map(math.log, seconds)))
    return slope


def _read_request(num_samples: int) -> Callable[[], object]:
    sample = {"prompt": "How does it grow? " * 5, "completion": "As it should. " * 20}
    body = json.dumps({"samples": [sample] * num_samples}).encode()

    def read() -> int:
        request = ScoreRequest.model_validate(read_json(body))
        return estimate_tokens([sample_in(one) for one in request.samples])

    return read


def _model(name: str) -> LoadedModel:
    spec = SequenceSpec(checkpoint="a/b")
    return LoadedModel(ServedModel(name, name, "recipe", spec, {}), ())


def _drain(
    num_samples: int, num_callers: int, num_models: int, layout: BatchLayout
) -> Callable[[], object]:
    """Return a call that takes all samples from a queue in batches."""
    models = [_model(f"m{number}") for number in range(num_models)]
    callers = [Caller(connection=str(number)) for number in range(num_callers)]
    queue = RequestQueue(_BUDGET)
    queue.put(
        QueuedSample(
            models[number % num_models],
            ModelInput((number,) * 24 + tuple(range(number % 97)), (), truncated=False),
            lambda outcome: None,
            lambda: True,
            float(number),
            layout,
            caller=callers[number % num_callers],
        )
        for number in range(num_samples)
    )

    def drain() -> None:
        while queue.num_waiting():
            batch = queue.take() or []
            num_tokens = [work.features.num_tokens for work in batch]
            queue.record_batch(batch, num_tokens, 1e-4 * sum(num_tokens))

    return drain


def _admit(num_connections: int) -> Callable[[], object]:
    admission = Admission(1 << 40)
    callers = [Caller(connection=str(number)) for number in range(num_connections)]

    def admit() -> None:
        places = [admission.admit(100, caller) for caller in callers]
        for place in places:
            place.__enter__()
        for place in places:
            place.__exit__(None, None, None)

    return admit


def _refuse(num_connections: int) -> Callable[[], object]:
    """Return a call in which connections are refused, and then admitted one by one."""
    admission = Admission(1000)
    callers = [Caller(connection=str(number)) for number in range(num_connections)]
    admitted: deque[AbstractContextManager[None]] = deque()

    def ask(number: int) -> None:
        place = admission.admit(100, callers[number], lambda: number)
        with suppress(Overloaded):
            place.__enter__()
            admitted.append(place)

    def refuse() -> None:
        for number in range(num_connections):
            ask(number)
        for number in range(10, num_connections):
            admitted.popleft().__exit__(None, None, None)
            ask(number)
        assert len(admitted) == 10

    return refuse


def _wait_for_capacity(num_connections: int) -> Callable[[], object]:
    """Return a call in which connections wait in the server until they are admitted."""
    admission = Admission(1000)

    async def ask(number: int) -> None:
        caller = Caller(connection=str(number))
        await admission.wait_for_capacity(100, caller)
        with admission.admit(100, caller):
            await asyncio.sleep(0)

    async def ask_all() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(num_connections):
                group.create_task(ask(number))

    return lambda: asyncio.run(ask_all())


def _assemble(num_groups: int) -> Callable[[], object]:
    """Return a call in which groups of two samples come in two requests each, and end."""
    state = GroupState(1 << 40)

    def assemble() -> None:
        for half in range(2):
            for number in range(num_groups):
                identity = Identity(None, b"%d" % half, b"prompt", 2, 1)
                found = state.arrive(number, "group", identity, 60.0, float(half))
                assert isinstance(found, tuple)
                if found[0].is_all_there:
                    state.end(found[0], AttemptState.COMPLETE, 1.0)
        state.forget(1e9)

    return assemble


def _lay_rewards(num_tokens: int) -> Callable[[], object]:
    """Return a call that places a reward a token, each of which is a turn."""
    tokens = [Span(4 * at, 4 * at + 4) for at in range(num_tokens)]
    values = [(token, 1.0) for token in tokens]
    text = "abc " * num_tokens
    last = num_tokens - 1

    def lay() -> None:
        place_on_tokens(values, text, tokens)
        place_on_turns(values, tokens, tokens, last)

    return lay


def _pack_chain(num_ids: int) -> Callable[[], object]:
    """Return a call that packs samples of so many ids together, each a prefix of the next."""
    size = 16
    depth = round(math.sqrt(2 * num_ids / size))
    whole = tuple(range(depth * size))
    chain = [whole[: size * (level + 1)] for level in range(depth)]
    return lambda: pack(chain, share=True)


def _waiting(layout: BatchLayout, num_callers: int) -> Callable[[int], Callable[[], object]]:
    return lambda num: _drain(num, num_callers, 1, layout)


_FEW, _MANY = (1024, 2048, 4096, 8192), (2048, 4096, 8192, 16_384)

COSTS = (
    Cost("samples of a request", _FEW, _read_request),
    Cost("waiting samples, packed, one caller", _MANY, _waiting(BatchLayout.PACKED, 1)),
    Cost("waiting samples, deterministic, one caller", _MANY, _waiting(BatchLayout.SINGLE, 1)),
    Cost("waiting samples, deterministic, 256 callers", _MANY, _waiting(BatchLayout.SINGLE, 256)),
    Cost("waiting samples, shared prefixes", _FEW, _waiting(BatchLayout.PREFIX_SHARED, 1)),
    Cost("connections that wait", _FEW, lambda num: _drain(num, num, 1, BatchLayout.SINGLE)),
    Cost("connections that are admitted", _FEW, _admit),
    Cost("connections that are refused and admitted later", _FEW, _refuse),
    Cost("connections that wait for capacity", _FEW, _wait_for_capacity),
    Cost("groups that come in parts", _FEW, _assemble),
    Cost("models", (8, 16, 32, 64), lambda num: _drain(256 * num, 1, num, BatchLayout.SINGLE)),
    Cost("tokens that rewards are laid on", _MANY, _lay_rewards),
    Cost("ids of a chain of prefixes", (1 << 16, 1 << 18, 1 << 20, 1 << 22), _pack_chain),
)


def _measure(cost: Cost, rounds: int, divisor: int) -> dict[str, object]:
    sizes = [max(size // divisor, 1) for size in cost.sizes]
    seconds = [median(_seconds(cost.prepare, size, rounds)) for size in sizes]
    return {
        "benchmark": "scale",
        "over": cost.over,
        "sizes": sizes,
        "seconds": [round(one, 6) for one in seconds],
        "exponent": round(exponent(sizes, seconds), 3),
    }


def _seconds(
    prepare: Callable[[int], Callable[[], object]], size: int, rounds: int
) -> Iterator[float]:
    for _ in range(rounds):
        call = prepare(size)
        gc.collect()
        gc.disable()  # as it is in the server while it reads a large body
        started = time.process_time()
        call()
        seconds = time.process_time() - started
        gc.enable()
        yield seconds


def main() -> None:
    """Print a line of JSON for each cost, with its sizes, its seconds and its exponent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each size")
    parser.add_argument("--quick", action="store_true", help="small sizes, three rounds")
    parser.add_argument("--over", default="", help="measure only costs whose name contains it")
    options = parser.parse_args()
    for cost in COSTS:
        if options.over not in cost.over:
            continue
        rounds, divisor = (3, 8) if options.quick else (options.rounds, 1)
        print(json.dumps(_measure(cost, rounds, divisor)), flush=True)


if __name__ == "__main__":
    main()
