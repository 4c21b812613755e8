#!/bin/sh
# NeMo RL: its own script, after `alarm` is one of its environments. In the configuration, the data
# has `env_name: alarm`, and `env.alarm` holds settings, such as {url: ..., multi_reward: false}.
export ALARM_URL=http://rewards:8000
exec python -m alarm_client.trainers.nemo_rl examples/run_grpo.py "$@"
