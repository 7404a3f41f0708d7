"""``caravela run``, as a shell calls it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
FLOWS = "flows_to_run"
SOON = 15.0


def caravela(*arguments: str, cwd: Path = HERE, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "caravela", *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=SOON)


def events(done: "subprocess.CompletedProcess[str]") -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def names(done: "subprocess.CompletedProcess[str]") -> list[str]:
    return [event["event"] for event in events(done)]


# ------------------------------------------------------------------ what it writes


def test_lines_to_read() -> None:
    done = caravela("run", f"{FLOWS}:quick")
    assert (done.returncode, done.stderr) == (0, "")
    shown = [line.split(" s  ", 1)[1] for line in done.stdout.splitlines()]
    assert shown[0].startswith("○ started, pid ")
    assert shown[1:] == ["· {'n': 1}", "· n: 2", "● done  {'n': 2}"]


def test_lines_of_json() -> None:
    done = caravela("run", f"{FLOWS}:quick", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    started, *states, end = events(done)
    assert started["event"] == "FlowStarted" and started["pid"] > 1
    assert [(event["event"], event["seq"], event["state"]) for event in states] == [
        ("FlowState", 1, {"n": 1}),
        ("FlowState", 2, {"n": 2}),
    ]
    assert (end["event"], end["seq"], end["state"], end["incarnation"]) == ("FlowDone", 3, {"n": 2}, 1)
    assert end["flow_id"] == started["flow_id"]
    times = [event["time"] for event in events(done)]
    assert times == sorted(times) and times[0] > 0


def test_steps_too() -> None:
    done = caravela("run", f"{FLOWS}:quick", "--json", "--steps")
    assert names(done) == ["FlowStarted", "StepEntered", "FlowState", "StepEntered", "FlowState", "FlowDone"]
    assert [event["path"] for event in events(done) if event["event"] == "StepEntered"] == [
        "set_state[0]",
        "set_state[1]",
    ]


def test_what_json_has_no_word_for_is_shown_as_python_shows_it() -> None:
    done = caravela("run", f"{FLOWS}:odd", "--json")
    assert done.returncode == 0
    assert events(done)[-1]["state"] == "{1, 2}"


def test_a_failure() -> None:
    done = caravela("run", f"{FLOWS}:fails")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].endswith("✗ failed: no luck with 7")
    end = events(caravela("run", f"{FLOWS}:fails", "--json"))[-1]
    assert (end["event"], end["reason"], end["crashed"]) == ("FlowError", "no luck with 7", False)


def test_crashes_that_spend_the_budget() -> None:
    done = caravela("run", f"{FLOWS}:crashes")
    assert done.returncode == 1
    assert done.stdout.count("↻ restarted after RuntimeError: boom in set_state") == 3
    assert "max_restarts=3 within 5 s are spent" in done.stdout
    assert 'raise RuntimeError("boom")' in done.stdout, "the traceback of the worker"


def test_temporary_flows_are_not_restarted() -> None:
    done = caravela("run", f"{FLOWS}:dies", "--json", "--restart", "temporary")
    assert done.returncode == 1
    assert names(done) == ["FlowStarted", "FlowError"]
    assert events(done)[-1]["reason"] == "SIGKILL in run" and events(done)[-1]["crashed"]


# ------------------------------------------------------------------ what it is given


def test_an_object_is_laid_over_the_declared_state() -> None:
    done = caravela(
        "run", f"{FLOWS}:tidy", "--state", '{"book_id": "abc"}', "--signal", "soil", "--timeout", "0.5", "--json"
    )
    assert done.returncode == 124
    assert names(done) == ["FlowStarted", "FlowState", "FlowState", "FlowStopped"]
    assert [event["state"] for event in events(done)[1:]] == [
        {"dirty": True, "book_id": "abc"},
        {"dirty": False, "book_id": "abc"},
        {"dirty": False, "book_id": "abc"},
    ]


def test_also_where_the_worker_makes_it() -> None:
    done = caravela("run", f"{FLOWS}:made", "--state", '{"n": 1}', "--json")
    assert events(done)[-1]["state"] == {"n": 2, "made": "in the worker"}


def test_what_is_no_object_is_the_state() -> None:
    done = caravela("run", f"{FLOWS}:crashes", "--state", "[1, 2]", "--json", "--restart", "temporary")
    assert "boom" in events(done)[-1]["reason"]


def test_a_state_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"n": 5}')
    done = caravela("run", f"{FLOWS}:quick", "--state", f"@{tmp_path / 'state.json'}", "--json")
    assert events(done)[-1]["state"] == {"n": 7}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nowhere.at_all:flow"], "there is no module 'nowhere.at_all'"),
        (["run", "no-name:flow"], "neither package.module:name nor path/to/file.py:name"),
        (["run", "nowhere/flows.py:x"], "there is no file 'nowhere/flows.py'"),
        (["run", FLOWS], "which flow? its flows: quick, tidy, made, "),
        (["show", f"{FLOWS}:bump"], "flows_to_run:bump is no flow but a function; its flows: quick, tidy, "),
        (["show", f"{FLOWS}:nothing"], "flows_to_run has no 'nothing'; its flows: quick, tidy, "),
        (["show", "json"], "which flow? json has no flows"),
        (["run", f"{FLOWS}:tidy", "--signal", "sell"], "declares no signal 'sell'; it declares soil"),
        (["run", f"{FLOWS}:quick", "--state", "{"], "argument --state: no JSON: Expecting property name"),
        (["run", f"{FLOWS}:quick", "--state", "@nothing.json"], "argument --state: nothing.json: No such file"),
        (["run", f"{FLOWS}:quick", "--timeout", "-1"], "argument --timeout: '-1' is no number of seconds"),
        (["run", f"{FLOWS}:quick", "--timeout", "soon"], "argument --timeout: 'soon' is no number of seconds"),
        (["run", f"{FLOWS}:quick", "--restart", "never"], "argument --restart: invalid choice: 'never'"),
        (["walk", f"{FLOWS}:quick"], "invalid choice: 'walk'"),
        ([], "the following arguments are required: command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said(arguments: list[str], words: str) -> None:
    done = caravela(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr and "Traceback" not in done.stderr


def test_what_cannot_start_says_why() -> None:
    done = caravela("run", f"{FLOWS}:nothing")
    assert done.returncode == 3
    assert "AttributeError: module 'flows_to_run' has no attribute 'nothing'" in done.stderr


# ------------------------------------------------------------------ how a target is named


HELPER = "def bump(state): return state | {'n': state['n'] + 1}\n"
ONLY = """from caravela import flow, set_state
from {helper} import bump
only = flow('only', set_state(bump), initial_state={{'n': 0}})
"""


def test_a_file_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text(HELPER)
    (tmp_path / "one.py").write_text(ONLY.format(helper="helper"))
    for target in (f"{tmp_path}/one.py:only", f"{tmp_path}/one.py"):
        assert events(caravela("run", target, "--json"))[-1]["state"] == {"n": 1}
    assert events(caravela("run", "one.py", "--json", cwd=tmp_path))[-1]["state"] == {"n": 1}
    assert events(caravela("run", "one", "--json", cwd=tmp_path))[-1]["state"] == {"n": 1}


def test_a_file_of_a_package_is_imported_as_a_part_of_it(tmp_path: Path) -> None:
    package = tmp_path / "shop" / "flows"
    package.mkdir(parents=True)
    for folder in (tmp_path / "shop", package):
        (folder / "__init__.py").write_text("")
    (tmp_path / "shop" / "helper.py").write_text(HELPER)
    (package / "one.py").write_text(ONLY.format(helper="..helper"))
    done = caravela("check", f"{package}/one.py:only")
    assert "✓ workers import it as shop.flows.one:only" in done.stdout
    assert events(caravela("run", f"{package}/one.py:only", "--json"))[-1]["state"] == {"n": 1}


def test_a_file_whose_name_is_taken_says_so(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("")
    done = caravela("show", f"{tmp_path}/json.py:x")
    assert done.returncode == 2 and "'json' already stands for " in done.stderr


# ------------------------------------------------------------------ stopping


class Running:
    """One that runs until it is told to stop."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "caravela", "run", *arguments, "--json"]
        self.process = subprocess.Popen(
            command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout
        self.started = json.loads(self.process.stdout.readline())

    def tell(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, list[dict[str, Any]], str]:
        out, errors = self.process.communicate(timeout=SOON)
        return self.process.returncode, [json.loads(line) for line in out.splitlines()], errors


@pytest.fixture
def running() -> Iterator[Any]:
    made: list[Running] = []

    def running(*arguments: str) -> Running:
        made.append(Running(*arguments))
        return made[-1]

    yield running
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_is_stopped_gracefully(running: Any, number: int, code: int) -> None:
    one = running(f"{FLOWS}:tidy")
    one.tell(number)
    returned, told, errors = one.end()
    assert (returned, errors) == (code, "")
    assert [event["event"] for event in told] == ["FlowStopped"]
    assert told[0]["state"] == {"dirty": False, "book_id": None}


def test_a_second_ctrl_c_stops_at_once() -> None:
    """One that hears nothing has 60 s; the second time it is killed."""
    command = [sys.executable, "-m", "caravela", "run", f"{FLOWS}:stubborn", "--shutdown", "60", "--steps"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=HERE, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as running:
        assert running.stdout and running.stderr
        for sign in ("→ run", "stopping it; once more: at once"):
            while sign not in running.stdout.readline():
                pass
            running.send_signal(signal.SIGINT)
        assert "■ stopped" in running.stdout.read()
        assert (running.wait(SOON), running.stderr.read()) == (130, "")


def test_who_reads_may_go(running: Any) -> None:
    one = running(f"{FLOWS}:tidy", "--signal", "soil")
    one.process.stdout.close()
    one.process.stdout = None
    one.tell(signal.SIGINT)
    returned, _, errors = one.process.wait(SOON), *one.process.communicate(timeout=SOON)
    assert returned in (130, 141) and "Traceback" not in errors
