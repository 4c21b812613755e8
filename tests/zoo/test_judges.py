"""Generative judges by `serve --model`: the question and the rating are those of their cards."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as hf

from alarm_models.errors import CheckpointError, SampleError
from alarm_models.modeling.families import families
from alarm_models.modeling.inputs import ModelInput
from alarm_models.recipe.from_checkpoint import recipe_of_checkpoint
from alarm_models.recipe.specs import JudgeSpec
from alarm_models.reward_models.judge_answers import AnswerReader, JudgeAnswer
from alarm_models.types import Sample
from alarm_service.cli.main import main
from zoo import builders, cards
from zoo.cases import load, sample, scores

_RUBRIC = "[Is it true?]\nScore 1: no.\nScore 5: yes."


def _recipe(name: str) -> dict[str, Any]:
    return dict(next(one for one in families() if one.name == name).recipe)


def _judge(folder: Path, answer: str) -> None:
    """Write a Mistral whose every answer is the given one."""
    builders.llama2_tokenizer(folder, extra=("[INST]", "[/INST]"))
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    path = [tokenizer.convert_tokens_to_ids("[/INST]"), *ids, tokenizer.eos_token_id]
    assert len(set(path)) == len(path)
    torch.manual_seed(0)
    small = {**builders.DECODER, "vocab_size": len(tokenizer), "hidden_size": 64, "head_dim": 16}
    config = hf.MistralConfig(**small, sliding_window=None, bos_token_id=1, eos_token_id=2)
    model = hf.MistralForCausalLM(config)
    tiny.write_script(model, {last: (token,) for last, token in pairwise(path)})
    model.save_pretrained(folder)


def _made(folder: Path, **keys: Any) -> Any:
    """Load the model of a checkpoint alone, as `serve --model` does."""
    table = recipe_of_checkpoint(str(folder)).table["models"]["rm"]
    return load(folder, {**table, "max_new_tokens": 16, **keys})


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        # prometheus_eval.prompts: ABS_SYSTEM_PROMPT, a line break and ABSOLUTE_PROMPT_WO_REF
        ("Prometheus 2", "dee528fa0f7bac1e0fa5500ee49ff07f9f65590bb69be85b2b4933d86d9b73d9"),
        # prompt-templates/absolute-scoring.yaml of atla-ai/selene-mini, its rubric as one field
        ("Selene 1 Mini", "63d64da50f1592811a8369e52b97fa06f9bfe5a67ca3d03b669700a5cc131cee"),
    ],
)
def test_question_is_the_published_one_with_our_names_of_fields(name: str, digest: str) -> None:
    assert hashlib.sha256(_recipe(name)["rubric"].encode()).hexdigest() == digest


@torch.no_grad()
def test_prometheus_rates_as_its_package_does(tmp_path: Path) -> None:
    folder = tmp_path / "prometheus-7b-v2.0"
    _judge(folder, "[RESULT] 4")
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    plain = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = _made(folder)
    sent = {name: {**one, "fields": {"score_rubric": _RUBRIC}} for name, one in cards.PLAIN.items()}
    prepared = model.prepare([sample(one) for one in sent.values()])
    for one, features in zip(sent.values(), prepared, strict=True):
        system, _, question = _recipe("Prometheus 2")["rubric"].partition("\n")
        for key in ("prompt", "completion"):
            question = question.replace(f"{{{key}}}", one[key])
        question = question.replace("{score_rubric}", _RUBRIC)
        # The package writes the system text into the first turn.
        text = f"<s>[INST] {system}\n{question} [/INST]"
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        assert isinstance(features, ModelInput)
        assert list(features.ids) == ids[0].tolist()
        written = plain.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :]
        answer = tokenizer.decode(written, skip_special_tokens=True)
        assert re.search(r"\[RESULT\]\s*(\d+)", answer) is not None
    assert scores(model, sent) == dict.fromkeys(sent, 4.0)


def test_judge_without_its_rubric_or_of_a_chat_fails_the_sample(tmp_path: Path) -> None:
    folder = tmp_path / "prometheus-7b-v2.0"
    _judge(folder, "[RESULT] 4")
    (lacking,) = _made(folder).prepare([Sample("p", "c")])
    assert "send it in the sample's `fields`" in lacking.message
    chat = sample({**cards.CHATS["turns"], "fields": {"score_rubric": _RUBRIC}})
    (refused,) = _made(folder).prepare([chat])
    assert "write `prompt_turns" in refused.message
    by_recipe = _made(folder, defaults={"score_rubric": _RUBRIC})
    assert scores(by_recipe, {"one": {"prompt": "p", "completion": "c"}}) == {"one": 4.0}


def test_inspect_of_a_judge_whose_answer_has_no_rating_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "prometheus-7b-v2.0"
    _judge(folder, "4")
    assert main(["inspect", str(folder), "--json", "--device", "cpu"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["score"]) == ("judge", None)
    assert told["notes"][-1] == 'the sample has no score: the judge\'s answer has no number: " 4"'


@pytest.mark.parametrize(
    ("name", "answer", "score"),
    [
        ("Prometheus 2", "A score of 3 would do, but it errs. [RESULT] 4", 4),
        ("Prometheus 2", "So the overall score is 5. [RESULT] (2)", 2),
        ("Prometheus 2", "[RESULT] 4 out of 5", 4),
        ("Prometheus 2", "The overall score is 5.", None),
        ("Prometheus 2", "[RESULT] 7", None),
        ("Selene 1 Mini", "**Reasoning:** 2 flaws.\n\n**Result:** 3", 3),
        ("DeepSeek-GRM", "Analysis: of 10, 7.\nScores: \\boxed{8}", 8),
        ("DeepSeek-GRM", "Scores: \\boxed{8, 3}", None),
    ],
)
def test_rating_is_read_in_the_familys_format(name: str, answer: str, score: float | None) -> None:
    reader = AnswerReader(JudgeSpec(checkpoint="x", **_recipe(name)), "max_new_tokens")
    try:
        read: float | None = reader.score([JudgeAnswer(answer)])
    except SampleError:
        read = None
    assert read == score


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("RM-R1-Qwen2.5-Instruct-7B", "it reasons about two completions"),
        ("Llama-3_3-Nemotron-Super-49B-GenRM", "it reasons about two completions"),
        ("CompassJudger-1-7B-Instruct", "--set models.rm.kind=judge"),
    ],
)
def test_judge_of_another_form_is_refused_with_what_to_write(
    name: str, told: str, tmp_path: Path
) -> None:
    _judge(tmp_path / name, "4")
    with pytest.raises(CheckpointError, match=re.escape(told)):
        recipe_of_checkpoint(str(tmp_path / name))


def test_any_causal_model_is_a_judge_by_the_keys_that_are_set(tmp_path: Path) -> None:
    folder = tmp_path / "instruct"
    _judge(folder, "4")
    keys = {"kind": "judge", "rubric": "Rate {completion}."}
    table = recipe_of_checkpoint(str(folder), keys).table["models"]["rm"]
    model = load(folder, {**table, **keys, "max_new_tokens": 16})
    assert scores(model, {"one": {"prompt": "p", "completion": "c"}}) == {"one": 4.0}
