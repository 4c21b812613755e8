#!/bin/sh
# ms-swift (4.x): the plugin enters `alarm` and one reward an aspect; weights are ms-swift's own.
export ALARM_URL=http://rewards:8000 ALARM_ASPECT_NAMES=factuality,relevance
exec swift rlhf --rlhf_type grpo \
    --external_plugins "$(python -m alarm_client.trainers path ms_swift)" \
    --reward_funcs alarm alarm_factuality \
    --reward_weights 1.0 0.0 \
    "$@"
