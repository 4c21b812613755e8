"""FineGrainedRLHF: the reward of its training script, from the server that ALARM_URL names."""

from alarm_client.trainers.fine_grained_rlhf import make_reward


def reward_of(tokenizer, args):
    """In place of `FineGrainedReward(...)` and its three models in `train_finegrained.py`."""
    return make_reward(tokenizer, kl_coef=args["ppo"]["kl_coef"])
