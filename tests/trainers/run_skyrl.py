"""Runs two episodes of a SkyRL-Gym environment created by its registered name."""

import json
import sys
from pathlib import Path

import skyrl_gym
from texts_of_policies import ANSWERS, PROMPT

from alarm_client.trainers.skyrl import register

register("alarm")
episodes = []
for answer in ANSWERS:
    environment = skyrl_gym.make("alarm", env_config={"aspects": "all"}, extras={})
    environment.init([{"role": "user", "content": PROMPT}])
    output = environment.step(answer + "<|im_end|>")
    episodes.append({**output, "metrics": environment.get_metrics()})
    environment.close()
Path(sys.argv[1]).write_text(json.dumps(episodes))
