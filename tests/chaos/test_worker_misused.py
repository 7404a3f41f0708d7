"""A flow that turns on its own worker: closes what it did not open, takes its signals. It ends, and says why."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from caravela import Cause, FlowError, Supervisor, flow, run, set_state, wait_until
from caravela.worker import exits

SOON = 10.0  # seconds that never pass unless something hangs
CLOSED = "a descriptor of the worker's own was closed in here"

idle = flow("idle", wait_until(lambda s: False), initial_state=lambda: {})


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    with own() as supervisor:
        yield supervisor


def own() -> Supervisor:
    """Made in a test, its workers write where that captures; one of a fixture has what stood there before."""
    return Supervisor(shutdown=0.2, restart="temporary")


def death(supervisor: Supervisor, *steps: Any, **state: Any) -> Cause:
    end = supervisor.start(flow("misused", *steps), initial_state=state).wait(SOON)
    assert isinstance(end, FlowError) and isinstance(end.reason, Cause), end
    return end.reason


def number_of(kind: str, access: int = os.O_RDWR) -> int:
    """In the worker: the fd of its own that is one of these."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and os.path.exists(f"/proc/self/fd/{fd}") and kind in os.readlink(f"/proc/self/fd/{fd}"):
            info = Path(f"/proc/self/fdinfo/{fd}").read_text()
            flags = next(int(line.split()[1], 8) for line in info.splitlines() if line.startswith("flags"))
            if flags & os.O_ACCMODE == access:
                return fd
    raise AssertionError


def close_all(state: Any) -> Any:
    os.closerange(3, 256)
    return state


def close_all_and_open_others(state: Any) -> Any:
    """As one does who becomes a daemon: numbers mean something else from now on."""
    os.closerange(3, 256)
    for _ in range(12):
        os.open(state["path"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    return state


async def close_all_and_await(state: Any) -> None:
    import asyncio

    os.closerange(3, 256)
    await asyncio.sleep(0)
    await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("body", [close_all, close_all_and_open_others, close_all_and_await])
@pytest.mark.parametrize("timeout", [None, 60_000])
def test_a_body_that_closes_all_descriptors_ends_its_worker_at_once(
    body: Callable[..., Any], timeout: int | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "opened"
    with own() as supervisor:
        cause = death(supervisor, run(body, timeout=timeout), path=str(file))
    assert cause == Cause("exit", f"exit code {exits.CRASHED}", "run", 1)
    assert f"caravela worker: OSError: {CLOSED} in run" in capfd.readouterr().err
    if file.exists():
        assert file.read_bytes() == b""  # nothing of the worker's goes into a file that has its number now


def close_wake(state: Any) -> None:
    os.close(number_of("eventfd"))


def replace_wake(state: Any) -> None:
    wake = number_of("eventfd")
    os.close(wake)
    assert os.open(os.devnull, os.O_RDWR) == wake


def close_orders(state: Any) -> Any:
    os.close(number_of("pipe", os.O_RDONLY))
    return state


def replace_orders(state: Any) -> Any:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, number_of("pipe", os.O_RDONLY))
    return state


@pytest.mark.parametrize(
    ("step", "path"),
    [
        (run(close_wake), "run[0]"),
        (run(replace_wake), "run[0]"),
        (set_state(close_orders), "wait_until[1]"),
        (set_state(replace_orders), "wait_until[1]"),
    ],
)
def test_where_its_answers_still_get_out_the_cause_says_it(supervisor: Supervisor, step: Any, path: str) -> None:
    cause = death(supervisor, step, wait_until(lambda s: False), none=None)
    assert (cause.kind, cause.detail, cause.path) == ("raised", f"OSError: {CLOSED}", path)


def test_a_step_on_the_loop_that_closes_all_descriptors_is_no_host_that_went(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with own() as supervisor:
        cause = death(supervisor, set_state(close_all), wait_until(lambda s: False), none=None)
    assert (cause.kind, cause.detail) == ("exit", f"exit code {exits.CRASHED}")
    assert f"caravela worker: OSError: {CLOSED} in wait_until[1]" in capfd.readouterr().err


def take_signals(state: Any) -> Any:
    def handler(*_: Any) -> None:
        raise ValueError("from a handler of the flow's")

    signal.signal(signal.SIGUSR1, handler)
    return state


def test_a_signal_handler_that_raises_is_a_crash_with_its_traceback(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle)
    handle.update(take_signals)
    os.kill(handle.pid or 0, signal.SIGUSR1)
    end = handle.wait(SOON)
    assert isinstance(end, FlowError) and isinstance(end.reason, Cause)
    cause = end.reason
    assert (cause.kind, cause.detail) == ("raised", "ValueError: from a handler of the flow's")
    assert (cause.path, cause.attempt) == ("wait_until", 1)
    assert cause.error and "in handler" in cause.error.traceback


def test_it_holds_its_status_page_once(supervisor: Supervisor) -> None:
    def pages(state: Any) -> Any:
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return [name for name in map(os.readlink, filter(os.path.exists, links)) if "caravela-status" in name]

    assert len(supervisor.start(idle).update(pages)) == 1
