"""NeMo Gym: the `app.py` of a resources server whose rewards come from the reward server.

    alarm:
      resources_servers:
        alarm:
          entrypoint: app.py
          domain: other
          verify_url: ${oc.env:ALARM_URL}/compat/nemo-gym/long-form-qa/verify

The route reads the conversation of `responses_create_params` and `response`, and the row's
`expected_answer` as the field `reference` (`?reference=` names another column). With `?mask=1` a
failed rollout is masked instead of ending the run.
"""

from typing import ClassVar

from nemo_gym.base_resources_server import (
    BaseResourcesServerConfig,
    BaseVerifyRequest,
    BaseVerifyResponse,
    SimpleResourcesServer,
)
from nemo_gym.server_utils import get_response_json, raise_for_status, request
from pydantic import ConfigDict


class AlarmConfig(BaseResourcesServerConfig):
    """The URL of the reward server, with the recipe or model in its path."""

    # The reward depends on the rollout alone, so that `gym eval reverify` may ask for it again.
    REVERIFY_MODE: ClassVar[str] = "stateless"

    verify_url: str


class AlarmVerifyRequest(BaseVerifyRequest):
    """A rollout with the columns of its row."""

    model_config = ConfigDict(extra="allow")


class AlarmVerifyResponse(BaseVerifyResponse):
    """The same with its reward, and its components as `alarm_...`."""

    model_config = ConfigDict(extra="allow")


class AlarmResourcesServer(SimpleResourcesServer):
    """Forwards each rollout; Gym retries while the reward server is unavailable."""

    config: AlarmConfig

    async def verify(self, body: AlarmVerifyRequest) -> AlarmVerifyResponse:
        """Return the rollout with its reward; an error response is raised."""
        answer = await request("POST", self.config.verify_url, json=body.model_dump(mode="json"))
        await raise_for_status(answer)
        return AlarmVerifyResponse.model_validate(await get_response_json(answer))


if __name__ == "__main__":
    AlarmResourcesServer.run_webserver()
