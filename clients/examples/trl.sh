#!/bin/sh
# TRL's command line: this flag beside your own, or `reward_funcs:` in its YAML file.
# ALARM_URL is yours where it is set; a server that is not there ends the script before training.
: "${ALARM_URL:=http://rewards:8000}"
export ALARM_URL
python -m alarm_client.trainers ready --timeout 600 || exit

exec trl grpo \
    --reward_funcs alarm_client.trainers.trl.reward \
    "$@"
