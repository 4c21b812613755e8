"""`python -m alarm_client.trainers`: settings per trainer, shipped files, checks and a trial."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from alarm_client.client import AlarmClient
from alarm_client.errors import AlarmError
from alarm_client.trainers import _try as trial
from alarm_client.trainers._padding import left_aligned
from alarm_client.trainers._padding_check import PADDING, Pad, Rows, check_padding, padding

FILES = Path(__file__).parent / "files"
WHAT_TO_WRITE = {
    "trl": "GRPOTrainer(reward_funcs=AlarmReward()), from alarm_client.trainers.trl; "
    "trl grpo --reward_funcs alarm_client.trainers.trl.reward; Unsloth the same",
    "ms_swift": "--external_plugins $(python -m alarm_client.trainers path ms_swift) "
    "--reward_funcs alarm",
    "verl": "reward.custom_reward_function.path=pkg://alarm_client.trainers.verl",
    "openrlhf": "--reward.remote_url $(python -m alarm_client.trainers path openrlhf)",
    "slime": "--custom-rm-path alarm_client.trainers.slime.custom_rm",
    "miles": "--custom-rm-path alarm_client.trainers.miles.custom_rm",
    "easyr1": "worker.reward.reward_function="
    "$(python -m alarm_client.trainers path easyr1):compute_score",
    "areal": 'trainer.train(workflow="alarm_client.trainers.areal.AlarmWorkflow")',
    "nemo_rl": "python -m alarm_client.trainers.nemo_rl examples/run_grpo.py, with env_name: alarm",
    "verifiers": '[env.taskset.task.rewards.alarm] fn = "alarm_client.trainers.verifiers.reward"',
    "open_instruct": "python -m alarm_client.trainers.open_instruct open_instruct/grpo_fast.py, "
    "with dataset: alarm",
    "rllm": "AgentTrainer(evaluator=AlarmEvaluator()), from alarm_client.trainers.rllm",
    "torchforge": "RewardActor(reward_functions=[AlarmReward()]), "
    "from alarm_client.trainers.torchforge",
    "trlx": "trlx.train(reward_fn=dense_reward_fn), from alarm_client.trainers.trlx",
    "skyrl": "trainer.override_entrypoint=alarm_client.trainers.skyrl_main "
    "environment.env_class=alarm",
    "alarm_trl": "step(queries, responses, place(token_scores(...))), "
    "from alarm_client.trainers.alarm_trl",
    "fine_grained_rlhf": "reward = make_reward(tokenizer, kl_coef), "
    "from alarm_client.trainers.fine_grained_rlhf",
}

# Trainers that need no client: the path of their URL, for a recipe or a model NAME.
BY_URL = {
    "OpenRLHF": "/compat/openrlhf/NAME (0.8.10, 0.8.11 and OpenRLHF-M: with ?extra_logs=0)",
    "slime": "/compat/slime/NAME (with --reward-key score: and ?format=dict)",
    "miles": "/compat/miles/NAME, as slime; it does not retry, so through the relay",
    "LLaMA-Factory": "/compat/llamafactory/NAME; it does not retry, so through the relay",
    "align-anything": "/compat/align-anything/NAME",
    "EasyR1": "/compat/easyr1/NAME, to which a reward function of yours posts reward_inputs",
    "NeMo Gym": "/compat/nemo-gym/NAME/verify, to which verify() of a resources server posts",
    "vLLM's clients": "/compat/vllm/NAME/classify, or .../pooling",
    "SGLang's clients": "/compat/sglang/NAME/v1/classify, or .../v1/embeddings",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 1 if a check or a trial fails, 2 for invalid arguments."""
    parser = argparse.ArgumentParser(prog="python -m alarm_client.trainers", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("list", help="list the setting for each trainer (the default)")
    path = commands.add_parser(
        "path", help="print the path of the file for a trainer that loads one"
    )
    path.add_argument("trainer", choices=sorted(_shipped()))
    ready = commands.add_parser("ready", help="wait until the server at ALARM_URL is ready")
    ready.add_argument("--timeout", type=_seconds, default=600.0, help="seconds")
    check = commands.add_parser(
        "check", help="check that the trainer's padding keeps the last token's reward"
    )
    check.add_argument("trainer", help="a trainer with token rewards, or module:function that pads")
    check.add_argument("--lengths", default="3,5,4", help="tokens of some responses")
    check.add_argument(
        "--responses", choices=["left", "right"], help="side on which responses are padded"
    )
    trial_of = commands.add_parser(
        "try", help="score completions with the settings of a trainer module"
    )
    trial_of.add_argument("trainer", choices=sorted(WHAT_TO_WRITE))
    trial.add_arguments(trial_of)
    options = parser.parse_args(arguments)
    run = {"path": _path, "ready": _ready, "check": _check, "try": _try}.get(options.command, _list)
    try:
        return run(options)
    except (AlarmError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be seconds above 0, got {text!r}")
    return seconds


def _list(_: argparse.Namespace) -> int:
    for trainer, line in WHAT_TO_WRITE.items():
        sys.stdout.write(f"{trainer:18} {line}\n")
    sys.stdout.write(
        "\nBy URL alone, after http://HOST:8000 or http://any:KEY@HOST:8000; the relay is\n"
        "`python -m alarm_client.relay http://HOST:8000`, which retries while the server is "
        "gone:\n"
    )
    for trainer, path in BY_URL.items():
        sys.stdout.write(f"{trainer:18} {path}\n")
    return 0


def _path(options: argparse.Namespace) -> int:
    sys.stdout.write(f"{_shipped()[options.trainer]}\n")
    return 0


def _ready(options: argparse.Namespace) -> int:
    with AlarmClient() as client:
        client.wait_ready(options.timeout)
        client.models()  # /health needs no key, this does
        sys.stdout.write(f"{client.url} is ready\n")
    return 0


def _check(options: argparse.Namespace) -> int:
    lengths = _lengths(options.lengths)
    if ":" in options.trainer:
        return _report(options.trainer, _imported(options.trainer), lengths)
    if options.trainer not in PADDING:
        raise ValueError(f"{options.trainer!r} is not one of {sorted(PADDING)}")
    of_rewards, of_responses = PADDING[options.trainer]
    responses = options.responses or of_responses
    pad = padding(of_rewards, responses)
    sides = {"left": "on the left", "right": "on the right", "none": "without padding"}
    title = f"rewards {sides[of_rewards]}, responses {sides[responses]}"
    _report(f"the trainer's own padding ({title})", pad, lengths)
    return _report("placed by this client", _after_placing(pad, responses), lengths)


def _lengths(text: str) -> list[int]:
    lengths = [int(one) if one.strip().isdecimal() else 0 for one in text.split(",")]
    if min(lengths) < 1:
        raise ValueError(f"--lengths must be numbers of tokens such as 30,57,41, got {text!r}")
    return lengths


def _after_placing(pad: Pad, responses: str) -> Pad:
    """The trainer's padding, applied to rows that already have the width of the batch."""

    def placed(rows: Rows) -> tuple[Rows, Rows]:
        _, masks = pad(rows)
        return pad(left_aligned(rows))[0] if responses == "right" else pad(rows)[0], masks

    return placed


def _try(options: argparse.Namespace) -> int:
    try:
        defaults = trial.defaults_of(options.trainer)
        read_row = trial.row_reader_of(options.trainer)
        read_fields = trial.fields_reader_of(options.trainer)
        return trial.try_samples(
            options, defaults, lambda line: sys.stdout.write(f"{line}\n"), read_row, read_fields
        )
    except (TypeError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2


def _report(title: str, pad: Pad, lengths: Sequence[int]) -> int:
    checks = check_padding(pad, lengths)
    sys.stdout.write(f"{title}:\n")
    for check in checks:
        state = "survives" if check.survives else "is LOST" if check.column is None else "is MOVED"
        sys.stdout.write(f"  {check.length:4} tokens: the last reward {state}\n")
    return 0 if all(check.survives for check in checks) else 1


def _shipped() -> dict[str, Path]:
    return {file.stem.removeprefix("alarm_"): file for file in FILES.glob("alarm_*.py")}


def _imported(name: str) -> Any:
    module, _, function = name.partition(":")
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name!r} must be an importable module:function: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
