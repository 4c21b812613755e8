"""SkyRL: the generator that it makes, with token rewards in place of the environment's."""

from skyrl.train.entrypoints.main_base import BasePPOExp

from alarm_client.trainers.skyrl import AlarmGenerator


class DenseExp(BasePPOExp):
    """An experiment whose generator is wrapped; run it as SkyRL's own examples run theirs."""

    def get_generator(self, cfg, tokenizer, inference_engine_client):
        """The generator that SkyRL would use, behind ours."""
        inner = super().get_generator(cfg, tokenizer, inference_engine_client)
        return AlarmGenerator(inner, tokenizer, url="http://rewards:8000")
