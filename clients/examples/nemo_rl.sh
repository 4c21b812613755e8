#!/bin/sh
# NeMo RL: its own script, after `alarm` is one of its environments. In the configuration, the data
# has `env_name: alarm`, and `env.alarm` holds settings, such as {multi_reward: false}.
# ALARM_URL is yours where it is set; a server that is not there ends the script before training.
: "${ALARM_URL:=http://rewards:8000}"
export ALARM_URL
python -m alarm_client.trainers ready --timeout 600 || exit

exec python -m alarm_client.trainers.nemo_rl examples/run_grpo.py "$@"
