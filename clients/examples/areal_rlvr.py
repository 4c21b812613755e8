"""AReaL: the workflow of its RLVR examples by a dotted name; ALARM_URL is the server."""


def train(trainer, config, tokenizer):
    """As `examples/math/gsm8k_rl.py` does, with another workflow and no reward function."""
    trainer.train(
        workflow="alarm_client.trainers.areal.AlarmWorkflow",
        workflow_kwargs={"gconfig": config.gconfig, "tokenizer": tokenizer},
    )
