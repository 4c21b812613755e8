"""Runs LLaMA-Factory's request for rewards with stand-ins for the rest of its package."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from policy import ANSWERS, QUESTION, policy_tokenizer


def load() -> Any:
    """Import a single file; the package imports GPU libraries."""
    root = next(
        Path(one) / "llamafactory" for one in sys.path if (Path(one) / "llamafactory").is_dir()
    )
    for name in ("", ".train", ".train.ppo", ".extras"):
        package = ModuleType(f"llamafactory{name}")
        package.__path__ = [str(root.joinpath(*name.split(".")))]
        sys.modules[package.__name__] = package
    from llamafactory.train.ppo.ppo_utils import get_rewards_from_server

    return get_rewards_from_server


def main(url: str) -> None:
    tokenizer = policy_tokenizer()
    query = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_dict=False
    )
    responses = [
        tokenizer.encode(f"{answer}<|im_end|>", add_special_tokens=False) for answer in ANSWERS
    ]
    texts = tokenizer.batch_decode([query + one for one in responses], skip_special_tokens=False)
    try:
        print(json.dumps(load()(url, texts).tolist()))
    except KeyError as error:
        print(json.dumps(f"KeyError: {error}"))


main(sys.argv[1])
