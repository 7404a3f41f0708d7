"""What may come between the wish for a worker and its launch."""

import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from caravela import BootError, FlowCrashed, FlowError, FlowStarted, FlowState, Supervisor, flow, repeat, wait_until
from caravela.supervisor.outbox import Outbox
from caravela.supervisor.runner import Runner
from caravela.supervisor.subscribers import Subscription

idle = flow("idle", repeat(wait_until(lambda s: False)), initial_state={"n": 0})


def bump(state: dict[str, int]) -> dict[str, int]:
    return {"n": state["n"] + 1}


def own_pid(state: object) -> dict[str, int]:
    return {"pid": os.getpid()}


def die(state: object) -> None:
    os._exit(3)


@pytest.fixture(params=["inline", "process"])
def supervisor(request: pytest.FixtureRequest) -> Iterator[Supervisor]:
    with Supervisor(engine=request.param, preload=False) as supervisor:
        yield supervisor


@pytest.mark.parametrize("argv", [None, [threading.Lock()]])
def test_what_of_this_process_cannot_travel(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, argv: object
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(sys, "argv", argv)
        with pytest.raises(BootError, match="flow 'idle' cannot start: "):
            supervisor.start(idle)
    assert supervisor.start(idle).update(bump) == {"n": 1}


def test_a_flow_that_is_ready_has_a_pid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the zygote's word, that it has forked the worker, comes behind the worker's own."""
    monkeypatch.setattr(Runner, "launched", lambda *_: None)
    with Supervisor(preload=False) as supervisor:
        started = supervisor.subscribe(FlowStarted)
        handle = supervisor.start(idle)
        pid = handle.update(own_pid)["pid"]
        event = started.get(10.0)
        assert isinstance(event, FlowStarted) and pid == handle.pid == event.pid


def test_who_listens_to_a_start_that_is_refused_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    attach, came = Outbox.attach, list[Subscription]()
    with Supervisor(preload=False) as supervisor:

        def attach_late(self: Outbox, *arguments: Any) -> None:
            came.append(supervisor.get("refused").subscribe())
            attach(self, *arguments)

        monkeypatch.setattr(Outbox, "attach", attach_late)
        with pytest.raises(BootError):
            supervisor.start("nowhere.at_all:flow", name="refused")
        (subscription,) = came
        (end,) = subscription
        assert isinstance(end, FlowError)


def test_who_begins_to_listen_during_a_launch_hears_of_states(monkeypatch: pytest.MonkeyPatch) -> None:
    attach, came = Outbox.attach, list[Subscription]()
    with Supervisor(preload=False) as supervisor:
        handle = supervisor.start(idle)

        def attach_late(self: Outbox, *arguments: Any) -> None:
            came.append(handle.subscribe(FlowState))
            attach(self, *arguments)

        monkeypatch.setattr(Outbox, "attach", attach_late)
        with pytest.raises(FlowCrashed):
            handle.update(die)
        assert handle.update(bump) == {"n": 1}
        (subscription,) = came
        states = [subscription.get(10.0).seq for _ in range(2)]
        assert states == [0, 1]
