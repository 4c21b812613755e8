"""The sections of `gpu.py`: each yields the rows of its table as soon as they are measured."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import qa
import torch
import transformers as hf
from checkpoints import Shape, random_llama
from children import function_in_child
from gpu_attention import attention_rows
from load import client, latencies
from made_samples import group
from operations import of_group
from ours import alarm_serve, in_process, on_the_wire, ways_over_http, write_recipe
from plain import encode
from products import matmul_peak
from recipe import gate, make_models, reward_over_http, settings
from reference_recipe import Rule, make_reference
from rivals import transformers
from timing import Timed, in_turns, largest_difference
from work import Sample, Task, Twins, Way, Work

__all__ = ["SECTIONS", "Row", "Section", "Setting"]

_ROOT = Path(__file__).parents[1]
_DTYPE = "bfloat16"
_ADMIN_KEY = "benchmark"

#: Qwen2.5-1.5B and Llama-3.1-8B without their vocabularies: those of the made-up words are smaller.
_SHAPES = {"1.5B": Shape(28, 1536, 12, 2, 8960), "8B": Shape(32, 4096, 32, 8, 14336)}
_TOY_SHAPES = {"toy": Shape(2, 128, 4, 2, 256)}

#: One row of a section's table: figures by the names of their columns.
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a section runs: ``folder`` is for its files, ``is_toy`` makes everything small."""

    device: str
    is_toy: bool
    folder: Path

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """The sizes of the models, by name, the smallest first."""
        return _TOY_SHAPES if self.is_toy else _SHAPES

    @property
    def peak_sides(self) -> Sequence[int] | None:
        """The sizes of the matrices whose products are the peak; None for the usual ones."""
        return (128, 256) if self.is_toy else None

    def task(self, name: str) -> Task:
        """Save the checkpoint of a shape, without weights; return how to run it."""
        folder = self.folder / name
        folder.mkdir()
        random_llama(folder, self.shapes[name], self.device)
        return Task(folder, "sequence", dtype=_DTYPE, device=self.device, trust_remote_code=True)

    def group(self, size: int, seed: int) -> Twins:
        """Make a group with a prompt of 1000 tokens and completions of 200 by the mean."""
        return group(size, *((40, 20) if self.is_toy else (1000, 200)), seed)

    def rounds(self, num: int) -> range:
        """Return the numbers of the rounds; -1 is the warm-up."""
        return range(-1, 1 if self.is_toy else num)


def gpu_tests(setting: Setting) -> Iterator[Row]:
    """Run every test that needs a GPU; on a CPU only list them."""
    files = [
        path
        for path in sorted((_ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text()
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-m", "gpu", "-p", "no:cacheprovider"]
    if setting.device == "cpu":
        command.append("--collect-only")
    done = subprocess.run([*command, *map(str, files)], cwd=_ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    for line in lines:
        outcome, _, rest = line.partition(" ")
        if outcome in ("PASSED", "FAILED", "ERROR", "SKIPPED"):
            test, _, reason = rest.partition(" - ")
            yield {"test": test, "outcome": outcome.lower(), "reason": reason or None}
    *_, last = (line for line in (*lines, *done.stderr.splitlines()) if line.strip())
    yield {"test": "all", "outcome": last.strip("= "), "exit status": done.returncode}


def peak(setting: Setting) -> Iterator[Row]:
    """Measure the fastest matrix product of each dtype."""
    for dtype in ("bfloat16", "float32"):
        operations_per_s = matmul_peak(setting.device, dtype, setting.peak_sides)
        yield {"dtype": dtype, "TFLOP/s": operations_per_s / 1e12}


def attention(setting: Setting) -> Iterator[Row]:
    """Compare the variable-length attention backend with the plain one."""
    yield from attention_rows(setting.device, is_toy=setting.is_toy)


def groups(setting: Setting) -> Iterator[Row]:
    """Score groups of one prompt in process, over HTTP, and with transformers one by one."""
    operations_per_s = matmul_peak(setting.device, _DTYPE, setting.peak_sides)
    _release_memory()
    for name in setting.shapes:
        task = setting.task(name)
        with ExitStack() as stack:
            theirs = stack.enter_context(transformers({})(task))
            ours = dict(stack.enter_context(in_process(task)))
            log = task.folder / "alarm.log"
            url = stack.enter_context(alarm_serve(str(write_recipe(task)), task.device, log))
            ours |= ways_over_http(stack.enter_context(client()), url)
            yield {"model": name, "way": f"alarm runs on {_execution(url)}"}
            for size in (1, 8, 16):
                seeds = {number: 100 * size + number for number in setting.rounds(5)}
                work = {number: setting.group(size, seed) for number, seed in seeds.items()}
                compared = theirs if size == 8 else {}
                timed = in_turns(ours | compared, work, rest_s=0)
                references = [{0: way.score(twin)} for way in compared.values() for twin in work[0]]
                for way, one in timed.items():
                    row: dict[str, Any] = {"model": name, "G": size, "way": way}
                    row |= _speed(task, work, one, operations_per_s)
                    yield row | (_compared(one, timed, references) if compared else {})
        _release_memory()


def _speed(task: Task, work: Work, one: Timed, operations_per_s: float) -> dict[str, Any]:
    """Return the speed of one way; tokens count as sent, each sample's with its prompt."""
    config = hf.AutoConfig.from_pretrained(task.folder)
    tokenizer = hf.AutoTokenizer.from_pretrained(task.folder)
    tokens, shares = [], []
    for number, seconds in enumerate(one.seconds):
        texts = [task.text(sample) for sample in work[number][one.twin]]
        batch = encode(tokenizer, task.kind, texts)
        tokens.append(sum(map(len, batch)) / seconds)
        shares.append(of_group(config, batch) / seconds / operations_per_s)
    return {
        "ms": 1000 * one.median,
        "samples/s": len(work[0][one.twin]) / one.median,
        "tokens/s": statistics.median(tokens),
        "share of peak": statistics.median(shares),
    }


def _compared(
    one: Timed,
    timed: Mapping[str, Timed],
    references: Sequence[Mapping[int, Sequence[float]]],
) -> dict[str, Any]:
    """Return the gain over transformers one by one, and the largest difference from its scores."""
    reference = references[one.twin]
    return {
        "one by one / this": timed["transformers, one by one"].median / one.median,
        "difference": largest_difference(one.numbers, reference),
        "largest score": max(map(abs, reference[0])),
    }


def requests(setting: Setting) -> Iterator[Row]:
    """Measure the latency of requests of one sample, on one connection and on many."""
    name = next(iter(setting.shapes))
    task = setting.task(name)
    pairs = qa.read(qa.GOLDEN / "qa_items.jsonl")
    served: Mapping[str, tuple[str, str, Callable[[int], Sample]]] = {
        name: (str(write_recipe(task)), "measured", lambda number: setting.group(1, number)[0][0]),
        "mini": ("mini", "preference", lambda number: qa.singles(pairs, 1, number)[0][0]),
    }
    for label, (recipe, model, sample) in served.items():
        with alarm_serve(recipe, setting.device, setting.folder / f"{label}.log") as url:
            seed = 0
            for connections, num in ((1, 200), (64, 1280)):
                if setting.is_toy:
                    num = 16
                # The first ones, on new connections, warm up.
                bodies = [
                    {"model": model, "samples": [on_the_wire(sample(seed + number))]}
                    for number in range(connections + num)
                ]
                seed += len(bodies)
                started = time.perf_counter()
                seconds = latencies(f"{url}/score", bodies, connections)
                took = time.perf_counter() - started
                counted = sorted(seconds[connections:])
                yield {
                    "model": label,
                    "connections": connections,
                    "requests": num,
                    "median ms": 1000 * statistics.median(counted),
                    "p99 ms": 1000 * counted[math.ceil(0.99 * num) - 1],
                    "requests/s": len(seconds) / took,
                }


def sleep(setting: Setting) -> Iterator[Row]:
    """Put a server to sleep and wake it; compare its memory and its scores."""
    name = next(reversed(setting.shapes))
    task = setting.task(name)
    samples = [on_the_wire(sample) for sample in setting.group(8, 1)[0]]
    body = {"model": "measured", "samples": samples}
    yield {"server": "not started"} | _memory(setting, None)
    flags = ("--admin-key", _ADMIN_KEY)
    log = task.folder / "alarm.log"
    with alarm_serve(str(write_recipe(task)), setting.device, log, *flags) as url:
        before = _ask(url, "/score", body)["scores"]
        yield {"server": "ready"} | _memory(setting, url)
        asleep_s = _seconds(lambda: _ask(url, "/admin/sleep", {}))
        yield {"server": "asleep", "seconds": asleep_s} | _memory(setting, url)
        wake_s = _seconds(lambda: _ask(url, "/admin/wake", {}))
        after = _ask(url, "/score", body)["scores"]
        row = {"server": "awake", "seconds": wake_s, "same bits": after == before}
        yield row | _memory(setting, url)


def paper_recipe(setting: Setting) -> Iterator[Row]:
    """Score groups with `long-form-qa`, 30 % past the threshold, against the original procedure."""
    shape, size = (Shape(1, 128), 3) if setting.is_toy else (Shape(12, 768), 8)
    folders = make_models(setting.folder, shape, shape)
    pairs = qa.read(qa.GOLDEN / "qa_items.jsonl")
    work = {number: qa.group(pairs, size, seed=number + 1) for number in setting.rounds(3)}
    flags = [flag for one in settings(folders) for flag in ("--set", one)]
    with function_in_child(make_reference, folders, setting.device) as reference:
        gates = [gate(0.3, (0, 1, 0), work, twin, reference) for twin in (0, 1)]
        rules = [one.rule for one in gates]
        rewards = [reference(work[0][twin], rule) for twin, rule in enumerate(rules)]
        for dtype in ("float32",) if setting.is_toy else ("float32", _DTYPE):
            log = setting.folder / f"{dtype}.log"
            serve = alarm_serve("long-form-qa", setting.device, log, "--dtype", dtype, *flags)
            with serve as url, client() as post:
                ways = _recipe_ways(partial(reward_over_http, post, url), rules)
                ways["original"] = Way(lambda samples: reference(samples, rules[0]))
                timed = in_turns(ways, work, rest_s=0)
            for way, one in timed.items():
                yield {
                    "way": way if way == "original" else f"{way}, {dtype}",
                    "past the threshold": gates[one.twin].share,
                    "ms": 1000 * one.median,
                    "samples/s": size / one.median,
                    "original / this": timed["original"].median / one.median,
                    "difference": largest_difference(one.numbers, {0: rewards[one.twin]}),
                }


def _recipe_ways(
    ask: Callable[[Rule, Sequence[Sequence[Sample]]], list[float]], rules: Sequence[Rule]
) -> dict[str, Way]:
    """Return the variants of a running server, each with the rule of its twin."""
    first, second = rules
    return {
        "a request a group": Way(lambda samples: ask(first, [samples])),
        "a request a sample": Way(
            lambda samples: ask(second, [[sample] for sample in samples]), twin=1
        ),
    }


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the run that has ``limit_s`` seconds, and what earlier ones left of theirs."""

    title: str
    limit_s: float
    rows: Callable[[Setting], Iterator[Row]]


#: The sections in the order in which they run; the limits add up to less than five minutes.
SECTIONS: Mapping[str, Section] = {
    "tests": Section("Tests that need a GPU", 40, gpu_tests),
    "peak": Section("Peak of matrix products", 15, peak),
    "attention": Section("`varlen_attn` compared with the plain path", 30, attention),
    "groups": Section("Groups of one prompt", 95, groups),
    "requests": Section("Requests of one sample", 40, requests),
    "sleep": Section("Sleep and wake", 25, sleep),
    "recipe": Section("The recipe `long-form-qa`", 40, paper_recipe),
}


def _release_memory() -> None:
    """Give memory that this process no longer uses back to the device, for the children."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _execution(url: str) -> str:
    """Return how a server runs the batches of its only model."""
    (model,) = _ask(url, "/models")["models"]
    return str(model["execution"])


def _memory(setting: Setting, url: str | None) -> dict[str, float]:
    """Return the memory in use: of the device, by all processes, and of the server's process."""
    used = {}
    if setting.device != "cpu":
        free, total = torch.cuda.mem_get_info(torch.device(setting.device))
        used["device MiB"] = (total - free) / 2**20
    if url is not None:
        with urllib.request.urlopen(f"{url}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        (resident,) = (line for line in lines if line.startswith("process_resident_memory_bytes"))
        used["server's host MiB"] = float(resident.split()[1]) / 2**20
    return used


def _ask(url: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """Send a request with the admin key, a POST if it has a body; return the response's JSON."""
    headers = {"Authorization": f"Bearer {_ADMIN_KEY}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}{path}", data, headers)
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read())


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
