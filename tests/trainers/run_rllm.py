"""Runs our evaluator with rLLM's types and loader, and a workflow's reward function."""

import json
import sys
from pathlib import Path

from rllm.eval.evaluator_loader import load_evaluator
from rllm.rewards.reward_types import RewardOutput
from rllm.types import Action, Episode, Evaluator, Step, Task, Trajectory
from texts_of_policies import ANSWERS, PROMPT

from alarm_client.trainers.rllm import AlarmEvaluator, AlarmReward

evaluator = load_evaluator("alarm_client.trainers.rllm:AlarmEvaluator")
assert isinstance(evaluator, Evaluator)
task = Task(id="1", instruction=PROMPT, metadata={"question": PROMPT, "answer": "Jane Austen"})
chat = [{"role": "user", "content": PROMPT}]


def episode(answer: str) -> Episode:
    reply = {"role": "assistant", "content": answer, "reasoning": ""}
    step = Step(chat_completions=[*chat, reply], model_response=answer)
    return Episode(trajectories=[Trajectory(steps=[step])])


outputs = [evaluator.evaluate(task, episode(answer)) for answer in ANSWERS]
captured = Episode(trajectories=[Trajectory(steps=[Step(model_response=ANSWERS[0])])])
reward = AlarmReward(recipe="mini")
results = [reward(task.metadata, Action(action=answer)) for answer in ANSWERS]
assert all(isinstance(result, RewardOutput) for result in results)
found = {
    "evaluator": [output.reward for output in outputs],
    "signals": {signal.name: signal.value for signal in outputs[0].signals},
    "captured": AlarmEvaluator().evaluate(task, captured).reward,
    "workflow": [result.reward for result in results],
}
Path(sys.argv[1]).write_text(json.dumps(found))
