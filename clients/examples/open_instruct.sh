#!/bin/sh
# open-instruct: its own script, run with the verifier `alarm` among its verifiers; rows whose
# `dataset` is `alarm` are rewarded by it. Its own factor of 10 is for verifiers of 0 and 1.
# ALARM_URL is yours where it is set; a server that is not there ends the script before training.
: "${ALARM_URL:=http://rewards:8000}"
export ALARM_URL
python -m alarm_client.trainers ready --timeout 600 || exit

exec python -m alarm_client.trainers.open_instruct open_instruct/grpo_fast.py \
    --verification_reward 1.0 \
    "$@"
