#!/bin/sh
# slime: a number a sample. With --reward-key score it is a dict with the reward's parts.
# ALARM_URL is yours where it is set; a server that is not there ends the script before training.
: "${ALARM_URL:=http://rewards:8000}"
export ALARM_URL
python -m alarm_client.trainers ready --timeout 600 || exit

exec python train.py \
    --custom-rm-path alarm_client.trainers.slime.custom_rm \
    "$@"

# Token rewards (no context parallelism) take three hooks:
#   --custom-rm-path alarm_client.trainers.slime.dense_rm
#   --custom-reward-post-process-path alarm_client.trainers.slime.post_process_rewards
#   --custom-advantage-function-path alarm_client.trainers.slime.token_level_advantages
