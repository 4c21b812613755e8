#!/bin/sh
# verl (0.7.1 on; the client is installed where its Ray workers run): these lines beside your own.
# compute_score sees no prompt: here each row's extra_info has it under "question".
# ALARM_URL is yours where it is set; a server that is not there ends the script before training.
: "${ALARM_URL:=http://rewards:8000}"
export ALARM_URL
python -m alarm_client.trainers ready --timeout 600 || exit

exec python -m verl.trainer.main_ppo \
    reward.custom_reward_function.path=pkg://alarm_client.trainers.verl \
    reward.custom_reward_function.name=compute_score \
    +reward.custom_reward_function.reward_kwargs.prompt_key=question \
    "$@"

# A recipe for this run, in place of ALARM_RECIPE or the server's default one:
#   +reward.custom_reward_function.reward_kwargs.recipe=long-form-qa
#
# Or the manager, which sees the conversation and needs no extra_info:
#   reward.reward_manager.source=importlib
#   reward.reward_manager.name=AlarmRewardManager
#   reward.reward_manager.module.path=pkg://alarm_client.trainers.verl
#   +reward.reward_kwargs.recipe=long-form-qa
#
# Token rewards (where verl's own reward model is enabled without a resource pool of its own, for
# verl takes one float a trajectory elsewhere): the manager, and besides
#   reward.custom_reward_function.path=pkg://alarm_client.trainers.verl
#   +reward.reward_kwargs.dense=true
