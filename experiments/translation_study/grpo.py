"""Trains a policy with TRL's GRPOTrainer on the rewards of a running `alarm serve`."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LNTuningConfig
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from trl import GRPOConfig, GRPOTrainer

from alarm_client.trainers.trl import AlarmReward
from translation_study import policy
from translation_study.corpus import Sentence
from translation_study.methods import Method
from translation_study.settings import Sizes

__all__ = ["train"]

#: What is trained; README.md says what training other parameters gave.
_NORMS = ("input_layernorm", "post_attention_layernorm", "norm")

#: Seed of the samples of curves, the same for each method.
_CURVE_SEED = 3000


def train(
    method: Method,
    seed: int,
    rate: float,
    start: Path,
    prompts: Sequence[Sentence],
    followed: Sequence[Sentence],
    url: str,
    folder: Path,
    sizes: Sizes,
) -> list[dict[str, Any]]:
    """Train the norms of the supervised policy, and return the trainer's log.

    Writes `adapter` (the norms in float16), `policy` (with the adapter merged into it),
    `log.jsonl` and `curve.jsonl`.

    The curve has samples of the sentences to be followed, with the divergence from the supervised
    policy along each, every `curve_every` steps.
    """
    set_seed(seed)
    model, tokenizer = policy.load(start)
    reward = AlarmReward(
        "alarm", url=url, overrides=method.overrides, aspects="admitted", timeout=400.0
    )
    curve = _Curve(start, followed, folder / "curve.jsonl", sizes)
    trainer = GRPOTrainer(
        model=model.train(),
        processing_class=tokenizer,
        reward_funcs=reward,
        train_dataset=Dataset.from_list([{"prompt": one.prompt} for one in prompts]),
        callbacks=[curve],
        peft_config=LNTuningConfig(target_modules=list(_NORMS), task_type="CAUSAL_LM"),
        args=GRPOConfig(
            output_dir=str(folder / "trainer"),
            seed=seed,
            max_steps=sizes.steps,
            per_device_train_batch_size=sizes.prompts_per_step * sizes.group,
            num_generations=sizes.group,
            max_completion_length=sizes.new_tokens,
            temperature=1.0,
            top_k=0,
            learning_rate=rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=max(1, sizes.steps // 20),
            beta=sizes.beta,
            max_grad_norm=1.0,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        ),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "reward" in entry]
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    trainer.model.half().save_pretrained(folder / "adapter")
    policy.save(trainer.model.float().merge_and_unload(), tokenizer, folder / "policy")
    return log


class _Curve(TrainerCallback):
    """Writes samples of the policy, with their distance from the supervised one."""

    def __init__(self, start: Path, followed: Sequence[Sentence], file: Path, sizes: Sizes) -> None:
        self._reference, self._tokenizer = policy.load(start)
        self._followed = followed
        self._file = file
        self._sizes = sizes

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._write(kwargs["model"], 0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step % self._sizes.curve_every == 0:
            self._write(kwargs["model"], state.global_step)

    def _write(self, model: Any, step: int) -> None:
        prompts = [one.prompt for one in self._followed]
        state = _RandomState.taken()
        was_training = model.training
        model.eval()
        texts = policy.translate(
            model,
            self._tokenizer,
            prompts,
            new_tokens=self._sizes.new_tokens,
            seed=_CURVE_SEED + step,
        )
        distances = policy.divergences(model, self._reference, self._tokenizer, prompts, texts)
        model.train(was_training)
        state.put_back()
        with self._file.open("a") as file:
            for sentence, text, distance in zip(self._followed, texts, distances, strict=True):
                row = {
                    "step": step,
                    "id": sentence.id,
                    "completion": text.text,
                    "kl": round(distance, 4),
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


@dataclass(frozen=True, slots=True)
class _RandomState:
    """The state of the random numbers, so that following a policy does not change its training."""

    python: Any
    numpy: Any
    torch: Any

    @classmethod
    def taken(cls) -> _RandomState:
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state())

    def put_back(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
