"""FineGrainedRLHF: its trainer's reward object, with the rewards from a server."""

from alarm_client.trainers.fine_grained_rlhf import AlarmReward


def make_reward(policy_tokenizer):
    """In place of `FineGrainedReward(...)`; `prompt_key` names the prompt in a row's metadata."""
    return AlarmReward(policy_tokenizer, prompt_key="prompt", url="http://rewards:8000")
