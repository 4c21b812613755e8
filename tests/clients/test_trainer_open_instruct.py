"""open-instruct's calls, as `ground_truth_utils.py` of e6c3044 makes them."""

import importlib
import pickle
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import pytest

from alarm_client.trainers import open_instruct

CLIENTS = Path(__file__).parents[2] / "clients"

# open_instruct/ground_truth_utils.py, what a verifier meets of it.
THEIRS = """
from abc import ABC, abstractmethod
from dataclasses import dataclass

@dataclass
class VerifierConfig:
    @classmethod
    def from_args(cls, *sources):
        return cls()

@dataclass
class VerificationResult:
    score: float
    cost: float = 0.0
    reasoning: str | None = None

class VerifierFunction(ABC):
    def __init__(self, name, weight=1.0, verifier_config=None):
        self.name, self.weight, self.verifier_config = name, weight, verifier_config

    @classmethod
    def get_config_class(cls):
        return VerifierConfig

    @abstractmethod
    def __call__(self, tokenized_prediction, prediction, label, query=None, rollout_state=None):
        ...

def build_all_verifiers(args, streaming_config=None):
    verifiers = {}
    for subclass in VerifierFunction.__subclasses__():
        instance = subclass(subclass.get_config_class().from_args(args, streaming_config))
        verifiers[instance.name.lower()] = instance
    return verifiers
"""


@pytest.fixture
def theirs(monkeypatch):
    module = ModuleType("open_instruct.ground_truth_utils")
    monkeypatch.setitem(sys.modules, "open_instruct", ModuleType("open_instruct"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(THEIRS, vars(module))
    open_instruct._verifier.cache_clear()
    yield module
    open_instruct._verifier.cache_clear()


async def test_open_instruct_verifier_is_found_and_awaited(rewards, theirs):
    open_instruct.register()
    verifier = theirs.build_all_verifiers(None)["alarm"]
    call = {
        "tokenized_prediction": [1, 2],
        "prediction": "four<|im_end|>",
        "label": "A",
        "query": "system: Be brief.\nuser: Q",
        "rollout_state": {},
    }
    assert (await verifier.async_call(**call)).score == 4.0
    assert verifier(**call).score == 4.0
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q"}]
    assert (
        rewards.samples
        == [{"prompt": chat, "completion": "four", "fields": {"reference": "A"}}] * 2
    )


def test_open_instruct_workers_unpickle_the_verifier_by_its_name(theirs):
    open_instruct.register()
    sent = pickle.dumps(theirs.build_all_verifiers(None)["alarm"])
    assert b"alarm_client.trainers.open_instruct" in sent
    assert pickle.loads(sent).name == "alarm"


async def test_open_instruct_call_without_a_query_is_refused(rewards, theirs):
    verifier = open_instruct.AlarmVerifier()
    with pytest.raises(ValueError, match="no query"):
        await verifier.async_call([1], "four", "A")


@pytest.mark.parametrize(
    ("query", "prompt"),
    [
        ("user: Q", [("user", "Q")]),
        ("user: one\ntwo: three\n\nfour", [("user", "one\ntwo: three\n\nfour")]),
        ("user: Q\nassistant: A\nuser: R", [("user", "Q"), ("assistant", "A"), ("user", "R")]),
        ("user: ", [("user", "")]),
        ("Who wrote Emma?", "Who wrote Emma?"),
        ("Tell me.\nuser: Q", "Tell me.\nuser: Q"),
    ],
)
def test_open_instruct_query_is_split_into_messages(query, prompt):
    found = open_instruct.messages_of_query(query)
    told = found if isinstance(found, str) else [(one["role"], one["content"]) for one in found]
    assert told == prompt


def test_open_instruct_script_runs_after_registration(tmp_path):
    package = tmp_path / "open_instruct"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "ground_truth_utils.py").write_text(THEIRS)
    script = """
        import pickle, sys
        from open_instruct.ground_truth_utils import build_all_verifiers
        verifier = build_all_verifiers(None)["alarm"]
        assert type(verifier).__module__ == "alarm_client.trainers.open_instruct"
        assert __name__ == "__main__"
        pickle.loads(pickle.dumps(verifier))
        print(list(build_all_verifiers(None)), sys.argv[1:])
    """
    (package / "grpo_fast.py").write_text(dedent(script))
    command = ["-m", "alarm_client.trainers.open_instruct", "open_instruct/grpo_fast.py", "--x"]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env={"PYTHONPATH": str(CLIENTS)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "['alarm'] ['--x']\n", done.stderr


def test_open_instruct_module_is_imported_without_open_instruct():
    assert importlib.import_module("alarm_client.trainers.open_instruct") is open_instruct
