"""Calls in the caller's thread, where a Ctrl-C may come at any moment: it ends the call, and nothing else."""

import logging
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from caravela import FlowRestarted, FlowState, Supervisor, flow, repeat, wait_until
from caravela.supervisor import outbox
from caravela.supervisor.calls import Call
from caravela.supervisor.events import Event
from caravela.supervisor.inbox import Inbox
from caravela.supervisor.link import Link

Interrupted = Callable[[int, Callable[[], object]], bool]

idle = flow("idle", repeat(wait_until(lambda s: False)), initial_state={"n": 0})


def bump(state: dict[str, int]) -> dict[str, int]:
    return {"n": state["n"] + 1}


def keep(state: dict[str, int], _: str) -> dict[str, int]:
    return state


def refuse(state: dict[str, int]) -> None:
    raise ValueError("as told")


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    with Supervisor(preload=False, shutdown=1.0) as supervisor:
        yield supervisor


@pytest.mark.parametrize("kind", ["update", "get_state", "signal"])
def test_whatever_ctrl_c_interrupts_the_flow_lives_and_answers(
    supervisor: Supervisor, interrupted: Interrupted, kind: str
) -> None:
    handle = supervisor.start(idle)
    call: dict[str, Callable[[], Any]] = {
        "update": lambda: handle.update(bump),
        "get_state": handle.get_state,
        "signal": lambda: handle.signal(bump),
    }
    call[kind]()
    with handle.subscribe() as events:
        moment, known = 0, handle.get_state()["n"]
        while interrupted(moment := moment + 1, call[kind]):
            now = handle.get_state()["n"]
            assert now - known in (0, 1), moment
            known = now
        handle.update(bump)
        assert moment > 20
        assert (handle.incarnation, handle.status) == (1, "running")
        handle.stop(5.0)
        states = {event.seq: event.state["n"] for event in events if isinstance(event, FlowState)}  # some come twice
    assert list(states) == list(range(min(states), min(states) + len(states)))
    assert all(seq == n for seq, n in states.items())


def test_who_has_let_go_of_the_pipe_does_not_read_it(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that must wait for room lets go, so that the loop reads: two readers would feed one decoder."""
    handle = supervisor.start(idle)
    begin, read = Inbox.begin_reading, Inbox._read
    readers: list[threading.Thread] = []

    def begin_when_another_was_quicker(self: Inbox, call: Call) -> None:
        begin(self, call)
        monkeypatch.setattr(Inbox, "begin_reading", begin)
        os.kill(pid, signal.SIGSTOP)
        other = threading.Thread(target=handle.signal, args=(keep, "x" * outbox.LIMIT))
        other.start()
        other.join()
        threading.Thread(target=os.kill, args=(pid, signal.SIGCONT)).start()

    def note_who_reads(self: Inbox, link: Link) -> bool:
        readers.append(threading.current_thread())
        return read(self, link)

    pid = handle.pid or 0
    monkeypatch.setattr(Inbox, "begin_reading", begin_when_another_was_quicker)
    monkeypatch.setattr(Inbox, "_read", note_who_reads)
    assert handle.update(keep, "y") == {"n": 0}
    assert readers and threading.main_thread() not in readers
    assert (handle.incarnation, handle.status) == (1, "running")


def test_a_put_may_fork_while_its_worker_dies(supervisor: Supervisor) -> None:
    """The loop, for which forks wait, does not wait for the caller who reads."""

    class Forks:
        def put_nowait(self, event: Event) -> None:
            if not isinstance(event, FlowState) or forked:
                return
            assert handle.pid
            death = os.pidfd_open(handle.pid)
            os.kill(handle.pid, signal.SIGKILL)
            select.select([death], [], [])
            os.close(death)
            pid = os.fork()
            if not pid:
                os._exit(0)
            os.waitpid(pid, 0)
            forked.append(pid)

    forked: list[int] = []
    handle = supervisor.start(idle, notify=Forks())
    handle.subscribe()
    assert handle.update(bump) == {"n": 1}
    assert forked
    with handle.subscribe((FlowRestarted,)) as events:
        if handle.incarnation == 1:
            events.get(5.0)
    assert handle.get_state() == {"n": 0}


class Raises(logging.Handler):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def emit(self, record: logging.LogRecord) -> None:
        raise self.error


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(3)], ids=repr)
def test_a_log_handler_that_raises_harms_no_flow(
    supervisor: Supervisor, error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    handle = supervisor.start(idle)
    broken = Raises(error)
    logging.getLogger("caravela").addHandler(broken)
    try:
        handle.signal(refuse)
        assert handle.update(bump) == {"n": 1}
        assert handle.update(bump) == {"n": 2}
    finally:
        logging.getLogger("caravela").removeHandler(broken)
    assert (handle.incarnation, handle.status) == (1, "running")
    assert repr(error).partition("(")[0] in capsys.readouterr().err
