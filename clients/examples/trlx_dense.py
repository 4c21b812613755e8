"""trlx: PPO on token rewards; `reward_fn` in place of `dense_reward_fn` gives scalars."""

import trlx

from alarm_client.trainers.trlx import dense_reward_fn


def train(prompts, config):
    """Train as trlx's own examples do; ALARM_URL is the URL of the server."""
    return trlx.train(reward_fn=dense_reward_fn, prompts=prompts, config=config)
