"""Builds and calls open-instruct's verifiers, including ours."""

import asyncio
import json
import sys
from pathlib import Path
from types import SimpleNamespace

from open_instruct import ground_truth_utils
from texts_of_policies import ANSWERS, PROMPT

from alarm_client.trainers.open_instruct import register

register()
wanted = {"llm_judge_model", "llm_judge_max_tokens", "llm_judge_max_context_length"}
wanted |= {"llm_judge_temperature", "llm_judge_timeout", "seed", "code_max_execution_time"}
wanted |= {"code_pass_rate_reward_threshold", "code_apply_perf_penalty"}
given = SimpleNamespace(**dict.fromkeys(wanted, 1), code_api_url="/test_program")
given.remap_verifier, given.max_length_verifier_max_length = None, 1
reward = ground_truth_utils.RewardConfig(
    verification_reward=1.0, verifier_functions=ground_truth_utils.build_all_verifiers(given, given)
).build()
none = [0] * len(ANSWERS)
infos = SimpleNamespace(
    timeouts=none, tool_errors=none, tool_outputs=[""] * 2, tool_calleds=none, rollout_states=None
)
scores, metrics = asyncio.run(
    reward(
        responses=[[1]] * 2,
        decoded_responses=ANSWERS,
        ground_truths=["Jane Austen"] * 2,
        datasets=["alarm"] * 2,
        finish_reasons=["stop"] * 2,
        infos=infos,
        queries=[f"user: {PROMPT}"] * 2,
    )
)
mean = float(metrics["objective/alarm_reward"])
Path(sys.argv[1]).write_text(json.dumps({"scores": list(map(float, scores)), "mean": mean}))
