"""ALaRM's own TRL fork: one step of its training script, with the rewards from a server.

ALARM_URL and ALARM_RECIPE (long-form-qa, in the paper) name the server and its recipe.

Before training, `check_trainer(ppo_trainer, queries, responses)` shows on your own trainer which
last rewards survive its padding, unplaced and placed.
"""

from alarm_client.trainers.alarm_trl import place, token_scores


def step(ppo_trainer, tokenizer, batch, queries, responses):
    """As `train_ppo.py`, where scoring, z-normalizing and combining took a hundred lines."""
    scores = token_scores(batch["query"], responses, tokenizer, too_short_weight=5.0)
    return ppo_trainer.step(queries, responses, place(scores))
