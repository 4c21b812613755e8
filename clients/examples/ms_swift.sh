#!/bin/sh
# ms-swift (4.x): the plugin enters `alarm` among its rewards.
# ALARM_URL is yours where it is set; a server that is not there ends the script before training.
: "${ALARM_URL:=http://rewards:8000}"
export ALARM_URL
python -m alarm_client.trainers ready --timeout 600 || exit

exec swift rlhf --rlhf_type grpo \
    --external_plugins "$(python -m alarm_client.trainers path ms_swift)" \
    --reward_funcs alarm \
    "$@"

# To log aspects besides, name them and give each a reward of weight 0:
#   export ALARM_ASPECT_NAMES=factuality,relevance
#   --reward_funcs alarm alarm_factuality alarm_relevance --reward_weights 1 0 0
