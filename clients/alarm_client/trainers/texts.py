"""Alias of `alarm_client.trainers._inputs`, which users' reward functions may import."""

from alarm_client.trainers._inputs import completion_of, prompt_of, without_end_tokens

__all__ = ["completion_of", "prompt_of", "without_end_tokens"]
