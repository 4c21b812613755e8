#!/bin/sh
# SkyRL 0.3 on: a number a sample. With alarm_client.trainers.skyrl_dense it is one a token.
# ALARM_URL is yours where it is set; a server that is not there ends the script before training.
: "${ALARM_URL:=http://rewards:8000}"
export ALARM_URL
python -m alarm_client.trainers ready --timeout 600 || exit

exec python -m skyrl.train.entrypoints.main_base \
    trainer.override_entrypoint=alarm_client.trainers.skyrl_main \
    environment.env_class=alarm \
    "$@"
