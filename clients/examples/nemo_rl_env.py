"""NeMo RL: call this before the environments are made, and give your data `env_name: alarm`.

The configuration of the environment goes under `env.alarm`, for example

    env:
      alarm: {url: http://rewards:8000, recipe: long-form-qa, multi_reward: false}
"""

from alarm_client.trainers.nemo_rl import register

register("alarm")
