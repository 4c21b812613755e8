"""Trains a small policy with TRL's GRPOTrainer on the rewards of a running `alarm serve`.

    alarm serve &
    pip install ./clients trl datasets
    python clients/examples/train_grpo.py --steps 60

Nothing is downloaded: the policy is a Qwen2 of two layers whose vocabulary is words, created
here, and it trains on a CPU in a few minutes. It starts by writing random words; the recipe `mini`
prefers answers that are supported by the passage, and so does the policy after some steps. The log
of each step has `reward`, `alarm/holistic`, `alarm/admitted` and `alarm/<aspect>`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, set_seed
from trl import GRPOConfig, GRPOTrainer

from alarm_client.trainers.trl import AlarmReward

PASSAGES = {
    "Who wrote Emma?": "Emma is a novel written by English author Jane Austen. "
    "It was first published in December 1815.",
    "Where is Highbury?": "Highbury is a fictional village in the novel Emma. "
    "It lies sixteen miles from London.",
}
OTHER_WORDS = (
    "Paris opera voyage Dickens banana quickly purple nobody thunder seven maybe never engine of "
    "and to shoe window because running cold garden dance yes. no. perhaps."
)


def prompts() -> list[str]:
    """The questions with their passages, as `mini` was trained to read them."""
    return [f"question: {question} context: {text}" for question, text in PASSAGES.items()]


def make_policy() -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """A random policy whose vocabulary is the words of the prompts and some others."""
    texts = [*prompts(), OTHER_WORDS]
    words = ["<pad>", "</s>", "<unk>", *sorted({word for text in texts for word in text.split()})]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],  # Qwen2 takes no token types
    )
    config = Qwen2Config(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen2ForCausalLM(config), tokenizer


def train(num_steps: int, output: Path) -> list[dict[str, float]]:
    """Train for `num_steps` steps; return the trainer's log, one entry per step."""
    set_seed(0)
    policy, tokenizer = make_policy()
    reward = AlarmReward()
    reward.source.wait_ready(timeout=120)
    trainer = GRPOTrainer(
        model=policy,
        processing_class=tokenizer,
        reward_funcs=reward,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts()] * 64),
        args=GRPOConfig(
            output_dir=str(output),
            max_steps=num_steps,
            per_device_train_batch_size=32,
            num_generations=16,
            max_completion_length=24,
            learning_rate=3e-3,
            lr_scheduler_type="constant",
            beta=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        ),
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "reward" in entry]


def main() -> None:
    """Train, write the log, and print the means of the first and the last steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path("grpo-run"))
    given = parser.parse_args()
    log = train(given.steps, given.output)
    given.output.mkdir(exist_ok=True)
    (given.output / "log.json").write_text(json.dumps(log, indent=1))
    print(report(log))


def report(log: list[dict[str, float]]) -> str:
    """Each metric's mean over the first and the last steps: ten each, if there are twenty.

    The two do not overlap; a single step gives one number.
    """
    width = max(1, min(10, len(log) // 2))
    parts = [log[:width], log[-width:]] if len(log) > 1 else [log]
    names = ("reward", *sorted(key for key in log[0] if key.startswith("alarm/")))
    means = {
        name: [sum(entry[name] for entry in part) / len(part) for part in parts] for name in names
    }
    title = f"mean of {width} step{'s' * (width > 1)}" + ", first -> last" * (len(parts) > 1)
    lines = [
        f"{name:20} " + " -> ".join(f"{mean:8.3f}" for mean in row) for name, row in means.items()
    ]
    return "\n".join([title, *lines])


if __name__ == "__main__":
    main()
