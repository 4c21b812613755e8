#!/bin/sh
# OpenRLHF (0.10 on; before that the flag is --remote_rm_url): this flag beside your own.
export ALARM_URL=http://rewards:8000 ALARM_RECIPE=long-form-qa
python -m alarm_client.trainers ready --timeout 600
exec python -m openrlhf.cli.train_ppo_ray \
    --reward.remote_url "$(python -m alarm_client.trainers path openrlhf)" \
    "$@"
