"""Processes of a user's function end with it, and it inherits no keys or sockets."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scoring_directly import completion, load_direct, values

from alarm_models.errors import RecipeError
from alarm_models.reward_models import process_guard as guard
from alarm_models.reward_models import process_pool as environment
from alarm_models.reward_models import process_pool as pool
from alarm_models.types import Score

#: Each completion is a way to leave a process behind; each process notes its id.
FUNCTIONS = """
import asyncio, functools, multiprocessing, os, stat, subprocess, sys, time

SLEEP = [sys.executable, "-c", "import time; time.sleep(1000)"]

def note(pid):
    with open(os.path.join(os.path.dirname(__file__), "pids"), "a") as file:
        file.write(f"{pid}\\n")

def sleep():
    note(os.getpid())
    time.sleep(1000)

def start(how):
    if how == "fork":
        process = multiprocessing.get_context("fork").Process(target=sleep)
        process.start()
    elif how == "program":
        process = subprocess.Popen(SLEEP)
        note(process.pid)
    elif how == "session":
        process = subprocess.Popen(SLEEP, start_new_session=True)
        note(process.pid)
    elif how == "daemon":
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                sleep()
            os._exit(0)
        os.wait()
        return
    elif how == "shell":
        process = subprocess.Popen(["sh", "-c", "echo $$ >> pids; sleep 1000 & sleep 1000"],
                                   cwd=os.path.dirname(__file__))
    return process

def waits(sample):
    if sample.completion == "fine":
        return 1
    process = start(sample.completion)
    if process is None:
        time.sleep(1000)
    (getattr(process, "join", None) or process.wait)()

def leaves(sample):
    if sample.completion == "dies":
        start("program")
        start("daemon")
        os._exit(1)
    if sample.completion != "fine":
        start(sample.completion)
    return 1

async def waits_later(sample):
    if sample.completion == "fine":
        await asyncio.sleep(0.01)
        return 1
    process = await asyncio.create_subprocess_exec(*SLEEP)
    note(process.pid)
    await process.wait()

def sockets(sample):
    found = 0
    for fd in range(64):
        try:
            found += stat.S_ISSOCK(os.fstat(fd).st_mode)
        except OSError:
            pass
    return found

class Later:
    async def __call__(self, sample):
        await asyncio.sleep(0)
        return 2

later = Later()
partly = functools.partial(waits_later)

def hidden(sample):
    return later(sample)

async def gives_up(sample):
    if sample.completion == "cancelled":
        raise asyncio.CancelledError
    if sample.completion == "timeout":
        raise TimeoutError("of another")
    return 3

class Long(Exception):
    def __repr__(self):
        if self.args[0] == "none":
            raise RuntimeError("no text")
        return "\\n\\x1b[31m" + "x" * 100_000

def long(sample):
    raise Long(sample.completion)
"""

WAYS = ("fork", "program", "session", "daemon", "shell")
PATIENCE_S = 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_rewards.py").write_text(FUNCTIONS)
    return tmp_path


def spec(folder: Path, name: str, **more: object) -> dict[str, object]:
    function = {"kind": "python", "function": f"my_rewards:{name}", "path": str(folder)}
    return function | {"workers": 1} | more


def pids(folder: Path) -> list[int]:
    file = folder / "pids"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def stat(pid: int) -> list[str]:
    """A process's state and its parent, first of what /proc says of it behind its name."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["", ""]


def is_running(pid: int) -> bool:
    """Whether a process is there and is no zombie, which whoever adopts it has yet to reap."""
    return stat(pid)[0] not in ("", "Z", "X")


def until_ended(*numbers: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while left := [pid for pid in numbers if is_running(pid)]:
        assert time.monotonic() < deadline, f"processes {left} are left"
        time.sleep(0.02)


def until_started(folder: Path, number: int = 1) -> list[int]:
    deadline = time.monotonic() + PATIENCE_S
    while len(found := pids(folder)) < number:
        assert time.monotonic() < deadline, "nothing was started"
        time.sleep(0.02)
    return found


async def test_call_that_starts_a_process_is_ended_with_it_at_its_timeout(folder: Path) -> None:
    model = load_direct(**spec(folder, "waits", timeout_s=4, workers=len(WAYS)))
    *late, fine = await model.score([completion(one) for one in (*WAYS, "fine")])
    for outcome in late:
        assert getattr(outcome, "message", "") == "my_rewards:waits took longer than 4 s"
    assert fine == Score(1, None, 0, False)
    assert len(pids(folder)) == len(WAYS)
    until_ended(*pids(folder))
    await model.close()


async def test_async_call_that_starts_a_process_is_ended_with_it_at_its_timeout(
    folder: Path,
) -> None:
    model = load_direct(**spec(folder, "waits_later", timeout_s=1.0))
    texts = ("program", "fine", "fine")
    late, *fine = await model.score([completion(one) for one in texts])
    assert getattr(late, "message", "") == "the function failed: took longer than 1 s"
    assert fine == [Score(1, None, 0, False)] * 2
    until_ended(*until_started(folder))
    assert await model.score([completion("fine")]) == [Score(1, None, 0, False)]
    await model.close()


async def test_process_that_a_call_leaves_behind_ends_with_the_model(folder: Path) -> None:
    model = load_direct(**spec(folder, "leaves"))
    outcomes = await model.score([completion(one) for one in WAYS])
    assert outcomes == [Score(1, None, 0, False)] * len(WAYS)
    assert all(map(is_running, until_started(folder, len(WAYS))))
    await model.close()
    until_ended(*pids(folder))


async def test_processes_of_a_call_that_dies_end_with_it(folder: Path) -> None:
    model = load_direct(**spec(folder, "leaves"))
    died, fine = await model.score([completion("dies"), completion("fine")])
    assert "ended its process" in getattr(died, "message", "")
    assert fine == Score(1, None, 0, False)
    # The child of the call that died may have ended before it wrote its number.
    until_ended(*until_started(folder))
    await model.close()


async def test_model_closed_while_it_starts_leaves_no_process(folder: Path) -> None:
    (folder / "slow.py").write_text(
        "import os, time\nfrom pathlib import Path\n"
        "pids = Path(__file__).with_name('pids')\n"
        "with pids.open('a') as file: file.write(f'{os.getpid()}\\n')\n"
        "if Path(__file__).with_name('go').exists(): time.sleep(1000)\n"
        "def one(sample): return 1\n"
    )
    model = load_direct(kind="python", function="slow:one", path=str(folder))
    (folder / "go").touch()
    asking = asyncio.create_task(model.score([completion("a")]))
    await asyncio.to_thread(until_started, folder, 2)
    await model.close()
    (outcome,) = await asking
    assert getattr(outcome, "code", "") == "model_failed"
    until_ended(*pids(folder))


PROGRAM = """
import asyncio, signal, sys
from alarm_models.reward_models.process_pool import Function, FunctionPool
from alarm_models.types import Sample

async def main():
    pool = FunctionPool(Function.find(sys.argv[1], f"my_rewards:{sys.argv[2]}", 1000), 1, 1)
    await pool.call(Sample("?", sys.argv[3]))
    await asyncio.sleep(1000)

# A shell has its background jobs ignore SIGINT, and what they start inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("function", "way", "end"),
    [
        ("leaves", "daemon", signal.SIGKILL),
        ("waits", "fork", signal.SIGKILL),
        ("waits", "session", signal.SIGTERM),
        ("waits", "fork", signal.SIGINT),
    ],
)
def test_process_that_ends_takes_its_functions_processes_along(
    function: str, way: str, end: signal.Signals, folder: Path
) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), function, way],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until_started(folder)
        below = descendants(process.pid)
        assert len(below) >= 2
    finally:
        process.send_signal(end)
        process.wait()
    until_ended(*pids(folder), *below)


def descendants(pid: int) -> list[int]:
    there = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    parents = {one: stat(one)[1] for one in there}
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == str(one)]
    return found[1:]


def test_guard_without_proc_or_prctl_ends_the_program_s_group(folder: Path) -> None:
    """As on macOS."""
    wrapper = folder / "wrapper.py"
    wrapper.write_text(
        f"import sys; sys.path.insert(0, {str(Path(guard.__file__).parent)!r})\n"
        "import process_guard as guard\n"
        "guard._prctl = lambda *_: None\n"
        "guard._descendants = lambda _: iter(())\n"
        "guard.main(int(sys.argv[1]), sys.argv[2:])\n"
    )
    lifeline, held = os.pipe()
    program = "import my_rewards, multiprocessing; my_rewards.start('fork'); my_rewards.sleep()"
    process = subprocess.Popen(
        [sys.executable, str(wrapper), str(lifeline), sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(folder)},
        pass_fds=[lifeline],
    )
    os.close(lifeline)
    until_started(folder, 2)
    os.close(held)
    assert process.wait(PATIENCE_S) == 0
    until_ended(*pids(folder))


@pytest.mark.parametrize("is_left", [True, False])
def test_module_that_starts_processes_is_found_or_refused_in_time(
    is_left: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "START_S", 2)
    (folder / "imported.py").write_text(
        "import my_rewards, time\nfrom pathlib import Path\nmy_rewards.start('fork')\n"
        "while not Path(__file__).with_name('pids').exists(): time.sleep(0.01)\n"
        f"{'' if is_left else 'time.sleep(1000)'}\n"
        "def one(sample): return 1\n"
    )
    arguments = {"kind": "python", "function": "imported:one", "path": str(folder)}
    if is_left:
        load_direct(**arguments)
    else:
        with pytest.raises(RecipeError, match="is not imported after 2 s"):
            load_direct(**arguments)
    until_ended(*until_started(folder))


def test_function_inherits_no_variable_that_holds_a_key(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        "ALARM_API_KEY", "ALARM_ADMIN_KEY", "alarm_admin_key", "ALARM_API_KEY_FILE", "ALARM_SET",
        "OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "PGPASSWORD",
        "GITHUB_PAT", "OPENAI_APIKEY", "MY_CREDENTIALS", "SSH_AUTH_SOCK",
    }  # fmt: skip
    harmless = {"TOKENIZERS_PARALLELISM", "ALARM_URL", "ALARM_RECIPE", "PATHS", "MY_DATA"}
    for name in secrets | harmless:
        monkeypatch.setenv(name, "1")
    assert told(folder) & (secrets | harmless) == harmless
    passed = {"OPENAI_API_KEY", "ALARM_API_KEY"}
    assert told(folder, environment=sorted(passed)) & secrets == passed


def told(folder: Path, **more: object) -> set[str]:
    """The names of the variables that a function sees."""
    (folder / "names.py").write_text(
        "import os\nfrom pathlib import Path\n"
        "def names(sample):\n"
        "    Path(__file__).with_name('names').write_text(' '.join(os.environ))\n"
        "    return 1\n"
    )
    given = {"kind": "python", "function": "names:names", "path": str(folder)} | more
    assert values(load_direct(**given), completion("a")) == [1]
    return set((folder / "names").read_text().split())


def test_passed_variables_change_no_fingerprint(folder: Path) -> None:
    plain, passed = (
        load_direct(**spec(folder, "sockets", **more)).fingerprint
        for more in ({}, {"environment": ["OPENAI_API_KEY"]})
    )
    assert plain == passed


def test_function_inherits_no_socket(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)):
        assert values(load_direct(**spec(folder, "sockets")), completion("a")) == [0]


@pytest.mark.parametrize("function", ["later", "hidden"])
def test_function_that_is_async_in_disguise_is_awaited(function: str, folder: Path) -> None:
    assert values(load_direct(**spec(folder, function)), completion("a")) == [2]


def test_partial_of_an_async_function_is_called_side_by_side(folder: Path) -> None:
    model = load_direct(**spec(folder, "partly"))
    assert values(model, completion("fine"), completion("fine")) == [1, 1]


def test_async_function_that_raises_what_asyncio_does_fails_its_sample(folder: Path) -> None:
    model = load_direct(**spec(folder, "gives_up"))
    cancelled, timeout, fine = values(
        model, completion("cancelled"), completion("timeout"), completion("fine")
    )
    assert cancelled == "the function failed: CancelledError()"
    assert timeout == "the function failed: TimeoutError('of another')"
    assert fine == 3


def test_text_of_an_exception_is_bounded_and_printable(folder: Path) -> None:
    long, none = values(load_direct(**spec(folder, "long")), completion("a"), completion("none"))
    assert re.fullmatch(r"the function failed:   \[31mx+", str(long))
    assert len(str(long)) < 500
    assert none == "the function failed: Long"


def test_without_secrets_drops_only_names_of_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"KEY": "1", "KEYBOARD": "2", "X_KEY_ID": "3"})
    assert environment.without_secrets() == {"KEYBOARD": "2"}
    assert environment.without_secrets(["KEY"]) == {"KEYBOARD": "2", "KEY": "1"}
