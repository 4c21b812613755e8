"""Alias of `alarm_client.trainers._inputs`, which reward functions of users' own may import."""

from alarm_client.trainers._inputs import completion_of, prompt_of, without_end_tokens

__all__ = ["completion_of", "prompt_of", "without_end_tokens"]
