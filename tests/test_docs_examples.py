"""Extracts the examples of README.md, docs/ and clients/, and runs them."""

import ast
import asyncio
import contextlib
import importlib
import io
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comet_checkpoints
import pytest
import tiny
from comparing_judge import prefers
from fastapi import FastAPI
from remote_servers import Calls, judge, vllm
from scripted_judge import Say, judge_server, rubric_answer, served
from tcp import over_tcp
from tiny import Checkpoint

from alarm_models.recipe.loader import load_recipe
from alarm_models.recipe.schema import Recipe
from alarm_models.types import Sample, Span
from alarm_service.api.app import create_app, create_engine
from alarm_service.engine.engine import RewardEngine
from alarm_service.engine.recipe_manager import RecipeSources
from alarm_service.settings import Settings

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "clients").glob("*.md")),
]

#: A block that starts with one of these is a shell command.
COMMANDS = {"alarm", "curl", "docker", "echo", "export", "kill", "kubectl", "make", "pip", "python"}

#: The top-level tables and keys of a recipe.
OF_A_RECIPE = {*Recipe.model_fields}


@dataclass(frozen=True)
class Block:
    """A code block of a document, and the number of its first line."""

    file: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def blocks(file: Path) -> Iterator[Block]:
    """Yield fenced and indented blocks, in order."""
    lines = file.read_text("utf-8").splitlines()
    at = 0
    while at < len(lines):
        start = at
        if lines[at].startswith("```"):
            at = lines.index("```", at + 1)
            text = "\n".join(lines[start + 1 : at]) + "\n"
            yield Block(file, start + 1, lines[start][3:] or kind_of(text), text)
            at += 1
        elif lines[at].startswith("    ") and not lines[at - 1].strip():
            while at < len(lines) and (lines[at].startswith("    ") or not lines[at].strip()):
                at += 1
            text = "\n".join(line[4:] for line in lines[start:at]).rstrip() + "\n"
            yield Block(file, start + 1, kind_of(text), text)
        else:
            at += 1


def kind_of(text: str) -> str:
    """Return the language of an indented block; "unknown" means that the example is broken."""
    words = [word for word in text.split() if "=..." not in word]
    first = words[0].rpartition("/")[2]
    if first in COMMANDS or first.startswith("--"):
        return "sh"
    if first.startswith("{"):
        return "json"
    if re.search(r"^(├|└)| {2,}├| \S+/ {2,}\S", text, re.MULTILINE):
        return "tree"
    if re.search(r"^(from|import|def|async def|class) ", text, re.MULTILINE):
        return "python"
    if re.search(r"^(\[[\w.]+\]|\w+ = )", text, re.MULTILINE):
        return "toml"
    return "unknown"


BLOCKS = [block for file in DOCUMENTS for block in blocks(file)]
TOML = [block for block in BLOCKS if block.language == "toml"]
RECIPES = [block for block in TOML if set(tomllib.loads(block.text)) <= OF_A_RECIPE]
PYTHON = [block for block in BLOCKS if block.language == "python"]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A working directory for the examples."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def test_every_docs_block_has_a_known_language() -> None:
    assert [str(block) for block in BLOCKS if block.language == "unknown"] == []
    assert len(RECIPES) >= 7
    assert len(PYTHON) >= 4


@pytest.mark.parametrize("block", TOML, ids=str)
def test_docs_toml_block_parses(block: Block) -> None:
    assert tomllib.loads(block.text)


@pytest.mark.parametrize("block", RECIPES, ids=str)
def test_docs_recipe_scores_a_sample(
    block: Block, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name, text in functions().items():
        file = folder / "rewards" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    table = completed(tomllib.loads(block.text))
    with contextlib.ExitStack() as servers:
        for name, model in table["models"].items():
            if "gate_at" in model:
                model["gate_at"] = "<|im_end|>\n<|im_start|>assistant\n"  # the small template's
            if model["kind"] == "comet":
                made = tmp_path_factory.mktemp(name) / name
                comet_checkpoints.write(made, comet_checkpoints.XCOMET, tags=4)
                model["checkpoint"] = str(made)
            elif "checkpoint" in model:
                model["checkpoint"] = str(checkpoint(model, tmp_path_factory.mktemp(name)).folder)
            if "endpoint" in model:
                servers.enter_context(judge_server())
                _, keys = servers.enter_context(
                    served(prefers(len) if model["kind"] == "compare" else met)
                )
                model["endpoint"] |= keys | {"cache": str(folder / "judge-answers")}
            if "url" in model:
                port = servers.enter_context(over_tcp(stand_in(model)))
                model["url"] = f"http://127.0.0.1:{port}"
        assert asyncio.run(errors_of(Recipe.model_validate(table))) == dict.fromkeys(
            table["models"]
        )


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_docs_python_block_compiles_and_its_imports_exist(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("alarm_"):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, one.name) for one in node.names), ast.unparse(node)


@pytest.mark.parametrize(
    "block", [one for one in PYTHON if one.file.parent.name != "clients"], ids=str
)
def test_docs_python_block_runs(block: Block) -> None:
    run(block)


def test_client_readme_first_python_block_runs() -> None:
    block = next(one for one in PYTHON if one.file == ROOT / "clients" / "README.md")
    names = run(block)
    (reward,) = names["result"].rewards
    assert len(reward.token_rewards) == len(names["response_ids"])
    assert names["result"].scalars(on_error=None) == [reward.reward]


def test_docs_commands_of_the_function_example_score_its_sample(folder: Path) -> None:
    shown = [one for one in BLOCKS if one.file.name == "checks.md"]
    at = next(index for index, one in enumerate(shown) if "def reward(sample" in one.text)
    function, recipe, commands = shown[at : at + 3]
    (folder / "rewards").mkdir()
    (folder / "rewards" / "mine.py").write_text(function.text)
    (folder / "my-recipe.toml").write_text(recipe.text)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-ec", commands.text], env=os.environ | {"PATH": path}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reward"] == 1


def run(block: Block) -> dict[str, Any]:
    """Run a block with a server whose recipe `mini` has the name that the block uses."""
    tokens = tiny.tokenizer(bos=False, eos=False)
    names: dict[str, Any] = {
        "tokenizer": tokens,
        "response_ids": tokens("The dog does not mind").input_ids,
        "prompt": "question: Who jumps? context: The fox.",
        "prompts": ["question: Who jumps? context: The fox."],
        "model": "a/policy",
        "GRPOTrainer": lambda model, **more: more,
    }
    wanted = re.search(r'recipe="([\w-]+)"', block.text)
    recipe = load_recipe("mini").model_copy(
        update={"name": wanted.group(1) if wanted else "mini", "parity": None}
    )
    app = create_app([recipe], Settings(device="cpu"), sources=RecipeSources({}, (), None))
    with contextlib.ExitStack() as running:
        port = running.enter_context(over_tcp(app)) if "127.0.0.1:8000" in block.text else 8000
        running.enter_context(contextlib.redirect_stdout(io.StringIO()))
        exec(block.text.replace("127.0.0.1:8000", f"127.0.0.1:{port}"), names)
        client = names.get("client")
        if client is not None:
            client.close()
    return names


def functions() -> Mapping[str, str]:
    """Return the modules that recipes name, with the functions shown in the documents."""
    shown = [one.text for one in PYTHON if "def reward(sample" in one.text]
    assert shown
    return {"mine.py": shown[0]}


def completed(table: dict[str, Any]) -> dict[str, Any]:
    """Complete the tables that a document shows to a full recipe."""
    aspects = {**table.get("hierarchy", {}).get("minimums", {})}
    models = {**table.get("models", {})} or {"length": {"kind": "length"}}
    first, *_ = models
    name = models[first].get("output") or next(iter(models[first].get("objectives", ())), None)
    output = {} if name is None else {"output": name}
    return {
        "name": "shown",
        "holistic": {"model": first, **output},
        "hierarchy": {"rule": "weighted_sum"},
        **{name: one for name, one in table.items() if not name.startswith("parity")},
        "models": models,
        "aspects": {name: {"model": first, **output} for name in aspects}
        | table.get("aspects", {}),
    }


def checkpoint(model: Mapping[str, Any], folder: Path) -> Checkpoint:
    """Create a small checkpoint in place of one from the hub."""
    match model["kind"]:
        case "generative":
            made = tiny.causal("llama", folder)
            made.tokenizer.add_tokens(["yes", "no"])  # single tokens, as large models have them
            made.tokenizer.save_pretrained(folder)
            return made
        case "rubric":
            made = tiny.causal("llama", folder)
            made.tokenizer.add_tokens(["Yes", "No"])
            made.tokenizer.chat_template = tiny.CHAT_TEMPLATE
            made.tokenizer.save_pretrained(folder)
            return made
        case "judge":
            return tiny.scripted_judge(folder, {"\n": ("7",), "7": ("",)})
        case "steps":
            return tiny.base_with_head(folder, head=model["head"], outputs=2)
        case "multi-objective":
            return armo(folder, len(model["objectives"]))
        case _ if "head" in model:
            return tiny.base_with_head(folder, head=model["head"])
        case _:
            return tiny.sequence_classifier("llama", folder)


def armo(folder: Path, num_objectives: int) -> Checkpoint:
    import torch

    gate = {
        "regression_layer.weight": torch.randn(num_objectives, 32),
        "reward_transform_matrix": torch.eye(num_objectives),
        "gating.logit_scale": torch.ones(1),
        "gating.layers.0.weight": torch.randn(num_objectives, 32),
        "gating.layers.0.bias": torch.randn(num_objectives),
    }
    return tiny.base_with(folder, gate)


def stand_in(model: Mapping[str, Any]) -> FastAPI:
    return judge(Calls()) if model["api"] == "chat" else vllm(Calls())


def met(body: dict[str, Any]) -> list[Say]:
    """Say of each criterion of a rubric that it is met."""
    return [Say(rubric_answer(body, lambda *_: True))]


async def errors_of(recipe: Recipe) -> dict[str, str | None]:
    """Load a recipe and score a group with each of its models; return the first errors."""
    engine: RewardEngine = create_engine([recipe], Settings(device="cpu"))
    await engine.start()
    try:
        await engine.life.until_ready()
        found = {}
        for name in recipe.models:
            outcomes = (await engine.score(f"{recipe.name}/{name}", GROUP)).outcomes
            errors = [str(one) for one in outcomes if isinstance(one, Exception)]
            found[name] = errors[0] if errors else None
        return found
    finally:
        await engine.close()


#: The stand-in judge returns the rating after "say:".
FIELDS = {"answer": "4", "source": "2 + 2?", "reference": "4"}
SAMPLE = Sample("2 + 2?", "say:4", FIELDS, (Span(0, 5), Span(5, 5)), group="sum")
GROUP = [SAMPLE, replace(SAMPLE, completion="Well, say:4")]  # a model may compare them
