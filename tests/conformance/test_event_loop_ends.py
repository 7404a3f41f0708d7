"""An async body whose event loop ends under it: that attempt fails, the next has a loop again."""

import asyncio
import os
import resource
import sys
from typing import Any

import pytest
from flows_under_test import State
from listening import SOON

from caravela import Error, FlowError, Ok, StepRaised, StepTimedOut, Supervisor, flow, parallel, run


async def for_ever() -> None:
    await asyncio.get_running_loop().create_future()


async def exit_beside(state: State) -> Ok:
    async def beside() -> None:
        sys.exit(5)

    task = asyncio.create_task(beside())
    await for_ever()
    return Ok({"task": str(task)})


async def stop(state: State) -> None:
    asyncio.get_running_loop().stop()
    await for_ever()


async def fine(state: State) -> Ok:
    await asyncio.sleep(0)
    return Ok(state | {"fine": True})


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (exit_beside, "SystemExit ended the event loop: 5"),
        (stop, "RuntimeError ended the event loop: Event loop stopped before Future completed."),
    ],
)
def test_every_attempt_says_what_ended_its_loop(supervisor: Supervisor, body: Any, why: str) -> None:
    end = supervisor.start(flow("ends", run(body, retries=2, base_delay=0)), initial_state={}).wait(SOON)
    assert isinstance(end, FlowError) and isinstance(end.reason, StepRaised)
    assert (end.reason.message, end.reason.path, end.reason.attempt) == (why, "run", 3)


def test_the_next_step_has_a_loop_and_a_timeout_is_one(supervisor: Supervisor, gate: Any) -> None:
    def both(state: State) -> list[Any]:
        return [lambda: exit_beside(state), lambda: stop(state)]

    def stuck(state: State) -> None:
        with open(state["gate"], "rb") as file:
            file.read()

    steps = parallel(both, on_error="collect"), run(fine), run(stuck, timeout=50)
    handle = supervisor.start(flow("ends", *steps), initial_state={"gate": gate().path})
    end = handle.wait(SOON)
    assert isinstance(end, FlowError) and isinstance(end.reason, StepTimedOut)
    assert end.reason.path == "run[2]"


@pytest.mark.parametrize("engine", ["process"], indirect=True)
def test_a_flow_without_descriptors_fails_and_says_so(supervisor: Supervisor) -> None:
    def hoard(state: State) -> Ok:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        opened = 0
        try:
            while True:
                os.open(os.devnull, os.O_RDONLY)
                opened += 1
        except OSError:
            return Ok({"opened": opened})

    handle = supervisor.start(flow("hoards", run(hoard), run(fine)), initial_state={})
    end = handle.wait(SOON)
    assert isinstance(end, FlowError) and isinstance(end.reason, StepRaised)
    assert end.reason.message == "OSError kept the event loop from starting: [Errno 24] Too many open files"


def test_tasks_of_a_parallel_fail_together(supervisor: Supervisor) -> None:
    def both(state: State) -> list[Any]:
        return [lambda: exit_beside(state), for_ever]

    handle = supervisor.start(flow("ends", parallel(both, on_error="collect"), run(fine)), initial_state={})
    results = handle.result(SOON)["parallel_results"]
    assert all(isinstance(result, Error) for result in results)
    assert [result.reason.message for result in results] == ["SystemExit ended the event loop: 5"] * 2
