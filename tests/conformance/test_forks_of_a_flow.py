"""Code of a flow that forks: the parent goes on, and the child ends where that code ends, as that code ended."""

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest
from flows_under_test import State, idle, put
from listening import SOON, states, until

from caravela import FlowDone, FlowState, Ok, Supervisor, flow, parallel, run, set_state, wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # this is what is tested


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def end(how: str) -> None:
    match how:
        case "exits":
            sys.exit(3)
        case "exits well":
            sys.exit()
        case "raises":
            raise ValueError("in a fork")


def body(state: State) -> Ok:
    if (pid := os.fork()) == 0:
        end(state["how"])
        return Ok({"from": "a fork"})
    return Ok(state | {"code": code_of(pid)})


async def awaiting(state: State) -> Ok:
    await asyncio.sleep(0)
    return body(state)


CODES = [("exits", 3), ("exits well", 0), ("raises", 1), ("returns", 0)]


@pytest.mark.parametrize(("how", "code"), CODES)
@pytest.mark.parametrize("fn", [body, awaiting])
def test_out_of_a_body(supervisor: Supervisor, fn: Callable[..., Any], how: str, code: int) -> None:
    handle = supervisor.start(flow("forks", run(fn), run(fn)), initial_state={"how": how})
    events = handle.subscribe()
    assert handle.result(SOON) == {"how": how, "code": code}
    assert states(until(events)) == [{"how": how, "code": code}]


def test_out_of_bodies_of_a_pool(supervisor: Supervisor) -> None:
    def bodies(state: State) -> list[Callable[[], Any]]:
        return [lambda: body({"how": "exits"}).state["code"] for _ in range(4)]

    handle = supervisor.start(flow("forks", parallel(bodies)), initial_state={})
    assert handle.result(SOON) == {"parallel_results": [3, 3, 3, 3]}


def fork(state: State) -> State:
    pid = os.fork()
    if pid == 0:
        end(state["how"])
    return state | {"pid": pid}


def reap(state: State) -> State:
    return state | {"pid": 0, "code": code_of(state["pid"])}


@pytest.mark.parametrize(("how", "code"), CODES)
def test_out_of_a_step_on_the_loop(supervisor: Supervisor, how: str, code: int) -> None:
    """Two loops on one pair of pipes would both be believed."""
    go = wait_until(lambda s: s.get("go"))
    handle = supervisor.start(flow("forks", go, set_state(fork), set_state(reap)), initial_state={"how": how})
    events = handle.subscribe()
    handle.signal(put, "go", True)
    assert handle.result(SOON) == {"how": how, "go": True, "pid": 0, "code": code}
    assert [type(event) for event in until(events)] == [FlowState, FlowState, FlowState, FlowDone]


@pytest.mark.parametrize(("how", "code"), CODES)
def test_out_of_a_signal(supervisor: Supervisor, how: str, code: int) -> None:
    handle = supervisor.start(idle, initial_state={"how": how})
    for _ in range(3):
        assert handle.update(fork)["pid"] > 0
        assert handle.update(reap) == {"how": how, "pid": 0, "code": code}


class ForksWhenLoaded:
    def __reduce__(self) -> Any:
        return os.fork, ()


def test_out_of_the_loading_of_an_argument(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle, initial_state={"how": "returns"})
    assert handle.update(put, "pid", ForksWhenLoaded())["pid"] > 0
    assert handle.update(reap)["code"] == 0


def test_out_of_the_making_of_the_first_state(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle, initial_state=lambda: {"pid": os.fork()})
    assert handle.get_state()["pid"] > 0
    assert handle.update(reap)["code"] == 0


def loop_of_its_own() -> None:
    asyncio.run(asyncio.sleep(0))


def test_processes_that_never_come_back_are_left_alone(supervisor: Supervisor) -> None:
    def breed(state: State) -> Ok:
        import multiprocessing
        import subprocess
        from concurrent.futures import ProcessPoolExecutor

        forking = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(2, forking) as pool:
            pooled = list(pool.map(abs, [-1, -2]))
        process = forking.Process(target=sys.exit, args=(4,))
        process.start()
        process.join()
        said = subprocess.run(["echo", "said"], capture_output=True, text=True, check=True).stdout
        return Ok(state | {"pool": pooled, "process": process.exitcode, "said": said})

    async def breed_on_the_loop(state: State) -> Ok:
        import multiprocessing

        process = multiprocessing.get_context("fork").Process(target=loop_of_its_own)
        process.start()
        process.join()
        echo = await asyncio.create_subprocess_exec("echo", "awaited", stdout=asyncio.subprocess.PIPE)
        said, _ = await echo.communicate()
        return Ok(state | {"from a loop": process.exitcode, "awaited": said.decode()})

    handle = supervisor.start(flow("breeds", run(breed), run(breed_on_the_loop)), initial_state={})
    assert handle.result(SOON) == {
        "pool": [1, 2],
        "process": 4,
        "said": "said\n",
        "from a loop": 0,
        "awaited": "awaited\n",
    }
