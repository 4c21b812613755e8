"""infinity and vLLM as rivals: their servers in their own environments, on loopback."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, groupby
from typing import Any

from children import free_port, server
from environments import bin_folder
from load import Post, client
from work import Sample, Task, Way

__all__ = ["infinity", "vllm"]

_OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
_PATIENCE_S = 300


@contextmanager
def vllm(task: Task) -> Iterator[dict[str, Way]]:
    """Yield the variants over ``vllm serve``, eager, with its prefix cache if it has one."""
    port = str(free_port())
    command = [str(bin_folder("vllm") / "vllm"), "serve", str(task.folder), "--runner", "pooling"]
    command += ["--served-model-name", "measured", "--dtype", task.dtype, "--enforce-eager"]
    command += ["--host", "127.0.0.1", "--port", port]
    score = _classify if task.kind == "sequence" else _pool_tokens
    with (
        server(
            command,
            f"http://127.0.0.1:{port}/health",
            task.folder / "vllm.log",
            environment=_OFFLINE | _vllm_variables(),
            patience_s=_PATIENCE_S,
        ) as url,
        client() as post,
    ):
        yield {
            "vllm, one request": Way(lambda samples: score(post, url, task, [samples])),
            "vllm, a request a sample": Way(
                lambda samples: score(post, url, task, [[sample] for sample in samples]), 1
            ),
        }


def _vllm_variables() -> dict[str, str]:
    """Return the variables that vLLM's manual recommends: all cores, Intel's OpenMP, tcmalloc.

    By default it reserves a core for its front end, which is half of two cores. tcmalloc is used if
    a copy of it is in the environment's ``lib``.
    """
    cores = sorted(os.sched_getaffinity(0))
    cores = cores[: int(os.environ.get("OMP_NUM_THREADS", len(cores)))]
    libraries = bin_folder("vllm").parent / "lib"
    preload = [*libraries.glob("libiomp5.so"), *libraries.glob("libtcmalloc_minimal.so.4")]
    return {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "LD_PRELOAD": " ".join(map(str, preload)),
    }


def _classify(
    post: Post, url: str, task: Task, requests: Sequence[Sequence[Sample]]
) -> list[float]:
    bodies = [
        {
            "model": "measured",
            "input": [task.text(sample) for sample in samples],
            "use_activation": False,
        }
        for samples in requests
    ]
    answers = post(f"{url}/classify", bodies)
    return [one["probs"][0] for answer in answers for one in answer["data"]]


def _pool_tokens(
    post: Post, url: str, task: Task, requests: Sequence[Sequence[Sample]]
) -> list[float]:
    """Read every token's logits at the separators, which are words like any other."""
    bodies = [
        {
            "model": "measured",
            "input": [task.text(sample) for sample in samples],
            "task": "token_classify",
            "use_activation": False,
        }
        for samples in requests
    ]
    answers = post(f"{url}/pooling", bodies)
    logits = [one["data"] for answer in answers for one in answer["data"]]
    numbers: list[float] = []
    for sample, rows in zip(chain(*requests), logits, strict=True):
        words = task.text(sample).split()
        places = [at for at, word in enumerate(words) if word == task.separator]
        numbers += [rows[at][-1] - rows[at][0] for at in places]
    return numbers


@contextmanager
def infinity(task: Task) -> Iterator[dict[str, Way]]:
    """Yield the variants over infinity's reranker, which serves one-logit classifiers.

    The prompt is the query, of which a request has one.
    """
    port = str(free_port())
    command = [str(bin_folder("infinity") / "infinity_emb"), "v2"]
    command += ["--model-id", str(task.folder), "--served-model-name", "measured"]
    command += ["--device", "cpu", "--dtype", task.dtype]
    command += ["--host", "127.0.0.1", "--port", port]
    with (
        server(
            command,
            f"http://127.0.0.1:{port}/health",
            task.folder / "infinity.log",
            environment=_OFFLINE | {"INFINITY_ANONYMOUS_USAGE_STATS": "0"},
            patience_s=_PATIENCE_S,
        ) as url,
        client() as post,
    ):
        yield {
            "infinity, one request": Way(
                lambda samples: _rerank(
                    post, url, [list(some) for _, some in groupby(samples, lambda one: one.prompt)]
                )
            ),
            "infinity, a request a sample": Way(
                lambda samples: _rerank(post, url, [[sample] for sample in samples]), 1
            ),
        }


def _rerank(post: Post, url: str, requests: Sequence[Sequence[Sample]]) -> list[float]:
    bodies: list[dict[str, Any]] = [
        {
            "model": "measured",
            "query": samples[0].prompt,
            "documents": [sample.completion for sample in samples],
            "raw_scores": True,
        }
        for samples in requests
    ]
    numbers: list[float] = []
    for answer in post(f"{url}/rerank", bodies):
        found = sorted(answer["results"], key=lambda one: one["index"])
        numbers += [one["relevance_score"] for one in found]
    return numbers
