"""Many flows, and too many: fds, threads, and the time that it takes to end them all."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from witness import Watch, own_fds

from caravela import FlowError, FlowRestarted, FlowStopped, Supervisor, flow, run, set_state, wait_until

HOSTS = Path(__file__).with_name("hosts")
SOON = 15.0  # seconds that never pass unless something hangs

idle = flow("idle", wait_until(lambda s: False), initial_state=lambda: {})


@pytest.mark.parametrize("limit", [64, 65, 66, 67])  # whichever fd of the four of a flow is the last to be had
def test_at_the_hard_limit_of_fds_start_says_so_and_all_others_live(limit: int) -> None:
    done = subprocess.run(
        [sys.executable, str(HOSTS / "limited.py"), str(limit)], stdout=subprocess.PIPE, timeout=SOON, check=True
    )
    found = json.loads(done.stdout)
    assert found["started"] > (limit - 40) // 4
    for refusal in found["refusals"]:
        assert "cannot start" in refusal and ("Too many open files" in refusal or "no file descriptors" in refusal)
    assert found["nothing leaked"] and found["others"]
    assert found["after one was stopped"] == {}
    assert found["children"] == [found["started"]] * 2  # a refused one is not remembered
    assert found["left"] == []


def test_without_a_descriptor_it_does_not_open_and_can_be_opened_later() -> None:
    done = subprocess.run(
        [sys.executable, str(HOSTS / "exhausted.py")], stdout=subprocess.PIPE, timeout=SOON, check=True
    )
    found = json.loads(done.stdout)
    assert found["refusals"] == ["Too many open files"] * 2  # the loop needs two: one to wait at, one to be woken by
    assert found["state"] == {} and found["nothing left"]


@pytest.fixture
def soft_limit() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("soft_limit")
@pytest.mark.parametrize("room", range(1, 30, 4))
def test_the_soft_limit_is_raised_wherever_it_is_met(room: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    here = len(own_fds())
    resource.setrlimit(resource.RLIMIT_NOFILE, (here + room, hard))
    with Supervisor(shutdown=0.2) as supervisor:
        handles = [supervisor.start(idle, wait=False) for _ in range(8)]
        if here + room > 12:  # a worker, which gets the limit that the host began with, needs about so many
            assert [handle.get_state() for handle in handles] == [{}] * 8
    assert len(own_fds()) == here


@pytest.mark.usefixtures("soft_limit")
def test_fds_beyond_1023() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as held:
        null = held.enter_context(open(os.devnull))
        resource.setrlimit(resource.RLIMIT_NOFILE, (1100 + 60, hard))
        while (fd := os.dup(null.fileno())) < 1100:
            held.callback(os.close, fd)
        held.callback(os.close, fd)
        with Supervisor(shutdown=0.2, max_restarts=100) as supervisor:
            handles = [supervisor.start(idle) for _ in range(3)]
            events = supervisor.subscribe(kinds=(FlowRestarted, FlowError))
            assert min(fd for fd in own_fds() if os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[pidfd]") > 1023
            os.kill(handles[0].pid or 0, signal.SIGKILL)
            assert isinstance(events.get(SOON), FlowRestarted)
            assert [handle.update(lambda s: {"n": 1}) for handle in handles] == [{"n": 1}] * 3


def turn_deaf(state: Any) -> Any:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return {"deaf": True}


def hang(state: Any) -> None:
    threading.Event().wait()


def test_a_hundred_flows_that_all_refuse_to_stop_stop_in_parallel() -> None:
    fds, tasks, grace = own_fds().keys(), threading.active_count(), 0.3
    deaf = flow("deaf", set_state(turn_deaf), run(hang))
    with Supervisor(shutdown=grace) as supervisor:
        handles = [supervisor.start(deaf, wait=False) for _ in range(100)]
        for handle in handles:
            while not handle.get_state(SOON):
                pass
        assert threading.active_count() == tasks + 1  # one loop for all
        ends = supervisor.subscribe(kinds=(FlowStopped, FlowError))
        with Watch(handle.pid for handle in handles) as workers:
            began = time.monotonic()
            supervisor.close()
            took = time.monotonic() - began
            assert not workers.left(0)
        assert grace + 0.5 <= took < grace + 0.5 + 2.0  # one after the other it would be 80 s
        assert {ends.get(0).flow_id for _ in handles} == {handle.id for handle in handles}
        assert {handle.status for handle in handles} == {"stopped"}
    assert own_fds().keys() == fds


def test_a_hundred_lives_leave_nothing() -> None:
    with Supervisor(shutdown=0.2, max_restarts=1000) as supervisor:
        supervisor.start(idle).stop()
        fds, tasks = own_fds().keys(), threading.active_count()
        for number in range(100):
            handle = supervisor.start(idle)
            if number % 3 == 0:
                with pytest.raises(Exception, match="crash"):
                    handle.update(lambda s: os._exit(3))
            handle.get_state()
            handle.stop()
        assert (own_fds().keys(), threading.active_count()) == (fds, tasks)
        assert supervisor.children() == []
        assert supervisor._household and not supervisor._household._by_key
