#!/bin/sh
# EasyR1 (the client is installed where its Ray workers run): these lines beside your own. It passes
# no prompt to its reward function, so the column that data.answer_key names holds it:
#   {"prompt": "Who wrote Emma?", "reference": "Jane Austen"}, as an object or as JSON text.
# ALARM_URL is yours where it is set; a server that is not there ends the script before training.
: "${ALARM_URL:=http://rewards:8000}"
export ALARM_URL
python -m alarm_client.trainers ready --timeout 600 || exit

exec python -m verl.trainer.main \
    worker.reward.reward_function="$(python -m alarm_client.trainers path easyr1):compute_score" \
    data.answer_key=ground_truth \
    "$@"

# Settings for this run, in place of ALARM_... variables:
#   worker.reward.reward_function_kwargs.recipe=long-form-qa
# What an answer column of plain texts is, where it holds no JSON:
#   worker.reward.reward_function_kwargs.ground_truth=reference
