"""Models behind other servers' HTTP APIs: what is sent, what comes back, and trying again."""

from alarm_models.remote.apis import Api, api_of
from alarm_models.remote.exchange import Exchange, Failed

__all__ = ["Api", "Exchange", "Failed", "api_of"]
