"""A v1 task of verifiers, scored by itself with our reward plugged into its configuration."""

import asyncio
import json
import sys
from pathlib import Path

from texts_of_policies import ANSWERS, PROMPT
from verifiers.v1.configs.task import RewardFunctionConfig, TaskConfig
from verifiers.v1.graph import MessageNode
from verifiers.v1.task import Task, TaskData
from verifiers.v1.trace import Trace, TraceTask
from verifiers.v1.types import AssistantMessage, UserMessage

config = TaskConfig(
    rewards={"alarm": RewardFunctionConfig(fn="alarm_client.trainers.verifiers.reward")}
)


class Data(TaskData):
    """A row with what is right, as datasets have it."""

    answer: str


task = Task(Data(prompt=PROMPT, answer=ANSWERS[0]), config)


def rollout(answer: str) -> Trace:
    nodes = [
        MessageNode(message=UserMessage(content=PROMPT)),
        MessageNode(message=AssistantMessage(content=answer), parent=0, sampled=True),
    ]
    return Trace.model_construct(
        task=TraceTask(type="Task", data=task.data),
        nodes=nodes,
        rewards={},
        metrics={},
        root_reply=None,
    )


async def main() -> list[dict[str, object]]:
    traces = [rollout(answer) for answer in ANSWERS]
    await asyncio.gather(*(task.score(trace) for trace in traces))
    return [{"reward": trace.reward, "metrics": trace.metrics} for trace in traces]


Path(sys.argv[1]).write_text(json.dumps(asyncio.run(main())))
