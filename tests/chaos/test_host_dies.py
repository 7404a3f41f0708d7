"""However a host ends: one second after it is gone nothing of it is left."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from witness import Watch, carriers

HOSTS = Path(__file__).with_name("hosts")
NOTHING_LEFT_WITHIN = 1.0  # seconds after the host is gone: the law


class Host:
    """A host process, in a session of its own; with a terminal it is that terminal's foreground group."""

    def __init__(self, end: str, *, grace: float = 0.3, terminal: bool = False, script: str = "dying.py") -> None:
        self.token = uuid.uuid4().hex
        if terminal:
            self.input, theirs = pty.openpty()
        else:
            theirs, self.input = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, str(HOSTS / script), end, str(grace)],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=os.environ | {"CHAOS_TOKEN": self.token},
        )
        os.close(theirs)

    def __enter__(self) -> "Host":
        return self

    def __exit__(self, *_: object) -> None:
        for pid in carriers(self.token):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout and self.process.stderr
        self.process.stdout.close()
        self.process.stderr.close()
        os.close(self.input)

    def hear(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, self.errors()
        return json.loads(line)

    def errors(self) -> str:
        assert self.process.stderr
        return self.process.stderr.read().decode()

    def up(self) -> list[int]:
        """Waits until all its flows are as hard to end as they can be: the pids of their workers."""
        found = self.hear()
        assert "run" in self.hear()["spins"]
        assert {*found["pids"], *found["grandchildren"]} < carriers(self.token)
        os.write(self.input, b"\n")  # it may go on to its end
        return found["pids"]  # type: ignore[no-any-return]

    def ctrl_c(self) -> None:
        """The terminal sends SIGINT to its foreground group."""
        os.write(self.input, b"\x03")

    def gone(self, but: int = 0) -> int:
        """Waits until it is; then the law. ``but``: a process that may live. Returns the exit code."""
        with Watch(carriers(self.token) - {self.process.pid, but}) as others:
            code = self.process.wait()
            left = others.left(NOTHING_LEFT_WITHIN)
        assert not left, left
        assert carriers(self.token) - {but} == set()  # nor anything that came while it ended
        return code

    def ends(self) -> list[Any]:
        """What it still said."""
        assert self.process.stdout
        return [json.loads(line) for line in self.process.stdout]


def one_shutdown(ends: list[Any]) -> bool:
    """Each of the four flows came to one end, and it is that of a stop."""
    return [end["end"] for end in ends] == ["FlowStopped"] * 4 and len({end["flow"] for end in ends}) == 4


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_killed(number: signal.Signals) -> None:
    with Host("wait", grace=30) as host:
        host.up()
        host.process.send_signal(number)
        assert host.gone() == -number


def test_os_exit() -> None:
    with Host("os._exit", grace=30) as host:
        host.up()
        assert host.gone() == 3


def test_the_end_of_the_interpreter_ends_unsupervised_flows() -> None:
    with Host("unsupervised") as host:
        assert host.hear()["pids"]
        assert host.gone() == 0
        assert host.errors() == ""


@pytest.mark.parametrize(("end", "code"), [("sys.exit", 4), ("raise", 1)])
def test_an_exception_leaves_the_supervisor_first(end: str, code: int) -> None:
    with Host(end) as host:
        host.up()
        assert host.gone() == code
        assert one_shutdown(host.ends())


def test_ctrl_c_ends_everything_within_grace_and_a_second_by_one_shutdown() -> None:
    grace = 0.6
    with Host("wait", grace=grace, terminal=True) as host:
        workers = host.up()
        with Watch(workers[:1]) as idle:
            began = time.monotonic()
            host.ctrl_c()
            assert not idle.left(grace)  # who can stop stops at once; the terminal did not reach it
        host.gone()
        assert time.monotonic() - began < grace + 1.0
        assert one_shutdown(host.ends())
        errors = host.errors()
        assert errors.count("KeyboardInterrupt\n") == errors.count("Traceback") == 1, errors  # the host's own


def test_a_second_ctrl_c_does_not_wait_for_the_grace() -> None:
    with Host("wait", grace=30, terminal=True) as host:
        workers = host.up()
        with Watch(workers[:1]) as idle:
            host.ctrl_c()
            assert not idle.left(10)  # the shutdown is under way
        began = time.monotonic()
        host.ctrl_c()
        host.gone()
        assert time.monotonic() - began < 2.0
        assert one_shutdown(host.ends())


def test_killed_in_the_middle_of_its_shutdown() -> None:
    with Host("wait", grace=30, terminal=True) as host:
        workers = host.up()
        with Watch(workers[:1]) as idle:
            host.ctrl_c()
            assert not idle.left(10)
        host.process.kill()
        assert host.gone() == -signal.SIGKILL


def test_a_forked_child_that_lives_on_does_not_keep_the_workers() -> None:
    with Host("fork", grace=30) as host:
        host.up()
        child = host.hear()["child"]
        host.process.kill()
        assert host.gone(but=child) == -signal.SIGKILL
        assert child in carriers(host.token)
