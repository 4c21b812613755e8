#!/bin/sh
# SkyRL 0.3 on: a number a sample. With alarm_client.trainers.skyrl_dense it is one a token.
export ALARM_URL=http://rewards:8000
exec python -m skyrl.train.entrypoints.main_base \
    trainer.override_entrypoint=alarm_client.trainers.skyrl_main \
    environment.env_class=alarm \
    "$@"
