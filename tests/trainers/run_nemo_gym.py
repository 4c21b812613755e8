"""Runs NeMo Gym's resources server with our example, and its agent on the response."""

import asyncio
import json
import os
import sys
from pathlib import Path
from unittest.mock import MagicMock

import httpx
import nemo_gym.server_utils as gym
from nemo_gym.config_types import BaseServerConfig
from omegaconf import OmegaConf
from responses_api_agents.simple_agent.app import (
    SimpleAgentVerifyRequest,
    SimpleAgentVerifyResponse,
)
from texts_of_policies import ANSWERS, PROMPT

sys.path.insert(0, str(Path(__file__).parents[2] / "clients" / "examples"))
from nemo_gym_app import AlarmConfig, AlarmResourcesServer

URL = f"{os.environ['ALARM_URL']}/compat/nemo-gym/mini/verify"


def rollout(answer: str) -> dict[str, object]:
    text = {"type": "output_text", "text": answer, "annotations": []}
    message = {"id": "m", "type": "message", "role": "assistant", "content": [text]}
    thought = {"id": "t", "type": "reasoning", "summary": []}
    response = {"id": "r", "created_at": 0.0, "model": "m", "object": "response", "tools": []}
    response |= {"output": [thought, message], "parallel_tool_calls": True, "tool_choice": "auto"}
    asked = {"input": [{"role": "user", "content": PROMPT}]}
    given = {"responses_create_params": asked, "response": response, "expected_answer": "Austen"}
    return SimpleAgentVerifyRequest.model_validate(given).model_dump()


async def main() -> list[dict[str, object]]:
    gym.set_global_aiohttp_client(gym.GlobalAIOHTTPAsyncClientConfig())
    config = AlarmConfig(
        host="", port=0, entrypoint="", name="alarm", verify_url=f"{URL}?components=1"
    )
    client = MagicMock(spec=gym.ServerClient)
    client.global_config_dict = OmegaConf.create({})
    client.head_server_config = BaseServerConfig(host="", port=0)
    app = AlarmResourcesServer(config=config, server_client=client).setup_webserver()
    found = []
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gym") as http:
        for answer in ANSWERS:
            got = await http.post("/verify", json=rollout(answer))
            got.raise_for_status()
            read = SimpleAgentVerifyResponse.model_validate(got.json())
            found.append({"reward": read.reward, **(read.model_extra or {})})
    await gym.get_global_aiohttp_client().close()
    return found


Path(sys.argv[1]).write_text(json.dumps(asyncio.run(main())))
