"""Scores real sentence pairs with the translation recipe over HTTP, every aspect of every sample.

`alarm serve` runs in its own process with a random 2-layer holistic model, so that the checks and
not the model limit it. Requests have 64 samples; the number of connections is an option.
"""

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import httpx
import torch
import transformers as hf
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SAMPLES_A_REQUEST = 64
ASPECTS = ("grammar", "readability", "language")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "pairs", type=Path, help="zip or text file with lines of English, tab, Spanish"
    )
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    pairs = read_pairs(options.pairs)
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        make_holistic(Path(folder), [text for pair in pairs[:5000] for text in pair])
        server, url = serve(folder)
        try:
            for number in range(options.rounds):
                # New sentences, because harper caches those it has checked.
                chosen = random.sample(pairs, options.samples)
                before = cpu_seconds(server.pid)
                seconds = asyncio.run(score(url, chosen, options.connections))
                used = cpu_seconds(server.pid) - before
                row = {
                    "round": number,
                    "samples_per_s": round(len(chosen) / seconds),
                    "server_cpu_ms_per_sample": round(1000 * used / len(chosen), 2),
                    "server_cores": round(used / seconds, 2),
                }
                print(json.dumps({"benchmark": "translation"} | row), flush=True)
        finally:
            server.terminate()
            server.wait()


def read_pairs(file: Path) -> list[tuple[str, str]]:
    """Return (English, Spanish) pairs; from a zip, those of its only .txt file of pairs."""
    if file.suffix == ".zip":
        with zipfile.ZipFile(file) as archive:
            name = max(archive.infolist(), key=lambda one: one.file_size).filename
            text = archive.read(name).decode()
    else:
        text = file.read_text("utf-8")
    lines = (line.split("\t") for line in text.splitlines())
    return [(line[0], line[1]) for line in lines if len(line) > 1]


def make_holistic(folder: Path, texts: list[str]) -> None:
    """Save a 2-layer Llama with UltraRM's head, random weights, and a tokenizer for these texts."""
    fast = Tokenizer(models.BPE(unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(texts, trainer)
    hf.PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config = hf.LlamaConfig(vocab_size=4000, num_attention_heads=4, **size)
    state = {f"model.{name}": one for name, one in hf.LlamaModel(config).state_dict().items()}
    state["regression_head.weight"] = torch.randn(1, config.hidden_size)
    config.save_pretrained(folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def serve(checkpoint: str) -> tuple[subprocess.Popen[str], str]:
    """Serve the recipe on a free port; return once it is ready."""
    program = "import sys; from alarm_service.cli.main import main; sys.exit(main())"
    options = ["--recipe", "translation", "--set", f"models.ultrarm.checkpoint={checkpoint}"]
    command = [sys.executable, "-c", program, "serve", "--port", "0", *options]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    said = next(line for line in server.stderr if '"listening"' in line)
    # Drain the log, or its pipe would fill up.
    subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)
    found = re.search(r"http://[\d.:]+", said)
    assert found is not None
    while httpx.get(f"{found.group()}/health/ready").status_code != 200:
        time.sleep(0.2)
    return server, found.group()


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


async def score(url: str, pairs: list[tuple[str, str]], connections: int) -> float:
    """Reward the pairs with every aspect; return the seconds taken."""
    requests = [
        [sample(*pair) for pair in pairs[at : at + SAMPLES_A_REQUEST]]
        for at in range(0, len(pairs), SAMPLES_A_REQUEST)
    ]
    async with httpx.AsyncClient(base_url=url, timeout=None) as client:
        started = time.perf_counter()
        await asyncio.gather(
            *(send(client, requests[first::connections]) for first in range(connections))
        )
        return time.perf_counter() - started


async def send(client: httpx.AsyncClient, requests: list[list[dict[str, Any]]]) -> None:
    """Send requests sequentially; fail unless every sample has every aspect."""
    for samples in requests:
        body = {"samples": samples, "aspects": "all"}
        answer = await client.post("/hierarchical_reward", json=body)
        for one in answer.raise_for_status().json()["rewards"]:
            if one["error"] or not all(one["aspects"][name] for name in ASPECTS):
                raise RuntimeError(f"a sample without its reward: {one}")


def sample(english: str, spanish: str) -> dict[str, Any]:
    """Make a sample like a trainer: words as tokens, and an end-of-text token."""
    tokens = [list(word.span()) for word in re.finditer(r"\w+|[^\w\s]", english)]
    return {
        "prompt": f"translate Spanish to English: {spanish}",
        "completion": english,
        "token_offsets": [*tokens, [len(english), len(english)]],
    }


if __name__ == "__main__":
    main()
