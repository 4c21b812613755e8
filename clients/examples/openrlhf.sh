#!/bin/sh
# OpenRLHF (0.10 on; before that the flag is --remote_rm_url): this flag beside your own.
# ALARM_URL is yours where it is set; a server that is not there ends the script before training.
: "${ALARM_URL:=http://rewards:8000}"
export ALARM_URL
python -m alarm_client.trainers ready --timeout 600 || exit

exec python -m openrlhf.cli.train_ppo_ray \
    --reward.remote_url "$(python -m alarm_client.trainers path openrlhf)" \
    "$@"
