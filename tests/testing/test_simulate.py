"""The virtual clock, scripts and answers of ``caravela.testing``, as users of it see them."""

import asyncio
import gc
import math
from typing import Any

import pytest

from caravela.errors import BootError, FlowNotRunning, LimitExceeded, NotPortable
from caravela.flows import Error, Ok, each, flow, parallel, race, repeat, run, set_state, wait, wait_until
from caravela.supervisor.events import FlowDone, FlowError, FlowState, FlowStopped
from caravela.testing import simulate, takes

State = dict[str, Any]


def work(state: State) -> Ok:
    return Ok(state | {"by": "itself"})


FLOW = flow("simulated", run(work), initial_state={"by": "nobody"})


# ------------------------------------------------------------------ time


def test_time_is_exact_however_it_is_cut() -> None:
    for cuts in ([1000], [1] * 1000, [0.1] * 10_000, [333, 333, 334]):
        sim = simulate(flow("clock", *[wait(100)] * 10))
        for ms in cuts:
            assert not sim.done
            sim.advance(ms)
        assert sim.done and sim.now == 1000


def test_time_passes_after_the_end_too() -> None:
    sim = simulate(flow("clock"))
    sim.advance(50)
    assert sim.now == 50


@pytest.mark.parametrize("ms", [-1, math.inf, math.nan])
def test_time_goes_forward(ms: float) -> None:
    with pytest.raises(ValueError, match="ms must be finite"):
        simulate(FLOW).advance(ms)


@pytest.mark.parametrize(
    "spins", [repeat(set_state(lambda state: state)), repeat(run(lambda state: None)), repeat(repeat(wait(0)))]
)
def test_a_flow_that_never_waits_is_told(spins: Any) -> None:
    with pytest.raises(LimitExceeded, match=r"one virtual moment has 100,0\d\d steps"):
        simulate(flow("spins", spins))


def test_an_async_body_that_never_waits_is_told() -> None:
    async def spins(state: State) -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(LimitExceeded, match="callbacks"):
        simulate(flow("spins", run(spins)))


# ------------------------------------------------------------------ states


def test_the_initial_state() -> None:
    assert simulate(flow("first", wait(1))).state == {}
    assert simulate(flow("first", wait(1), initial_state=lambda: {"made": 1})).state == {"made": 1}
    assert simulate(FLOW, {"by": "test"}, bodies={work: takes(9)}).state == {"by": "test"}
    assert simulate(flow("first", wait(1)), dict).state == {}


def test_an_initial_state_that_cannot_be_had() -> None:
    def broken() -> Any:
        raise OSError("no disk")

    with pytest.raises(BootError, match=r"flow 'first' cannot start: its initial_state\(\) raised"):
        simulate(flow("first", initial_state=broken))
    with pytest.raises(NotPortable):
        simulate(flow("first"), (n for n in "x"))


# ------------------------------------------------------------------ scripts


@pytest.mark.parametrize("key", [work, "work", "run"])
def test_a_script_is_found_by_body_name_and_path(key: Any) -> None:
    sim = simulate(FLOW, bodies={key: takes(10, returns=Ok({"by": "script"}))})
    sim.advance(9)
    assert not sim.done
    sim.advance(1)
    assert sim.state == {"by": "script"}


def test_the_real_body_takes_no_time_or_the_time_that_it_is_given() -> None:
    assert simulate(FLOW).state == {"by": "itself"}
    sim = simulate(FLOW, bodies={work: takes(10)})
    sim.advance(10)
    assert sim.state == {"by": "itself"}


def test_a_function_in_place_of_a_body() -> None:
    assert simulate(FLOW, bodies={work: lambda state: Ok(state | {"by": "fake"})}).state == {"by": "fake"}
    sim = simulate(FLOW, bodies={work: takes(5, calls=lambda state: Ok(state | {"by": "fake"}))})
    sim.advance(5)
    assert sim.state == {"by": "fake"}


def test_a_list_is_one_script_for_each_start_the_last_again_and_again() -> None:
    script = [takes(10, raises=TimeoutError()), takes(20, returns=Error("busy"))]
    sim = simulate(flow("listed", run(work, retries=2, backoff="constant")), bodies={work: script})
    sim.advance(10 + 100 + 20 + 100 + 20)
    assert sim.events == [FlowError("busy", seq=1)]


def test_items_of_each_and_async_bodies_take_their_time() -> None:
    async def add(item: int, state: State) -> Ok:
        await asyncio.sleep(1)  # stands for work
        return Ok(state | {"sum": state["sum"] + item})

    sim = simulate(flow("each", each("items", add)), {"items": [1, 2], "sum": 0}, bodies={add: takes(500)})
    sim.advance(1500)
    assert sim.state["sum"] == 1
    sim.advance(1500)
    assert sim.done and sim.state["sum"] == 3


def test_a_body_that_never_ends() -> None:
    sim = simulate(flow("hangs", run(work, timeout=1000)), bodies={work: takes(math.inf, returns=None)})
    sim.advance(1000)
    assert isinstance(sim.events[-1], FlowError)


@pytest.mark.parametrize(
    ("options", "error"), [({"ms": -1}, ValueError), ({"ms": 1, "returns": 1, "raises": OSError()}, TypeError)]
)
def test_a_script_that_makes_no_sense(options: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        takes(**options)


@pytest.mark.parametrize("stand", [5, [], [takes(1), 2], None])
def test_a_stand_in_that_is_none(stand: Any) -> None:
    with pytest.raises(TypeError, match=r"bodies\['run'\] must be"):
        simulate(FLOW, bodies={"run": stand})


@pytest.mark.parametrize("key", ["wrok", "run[0]", dict, None])
def test_a_key_that_fits_no_body_is_told(key: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^bodies\[.*\] is no body of flow 'simulated', which has 'run' \(.*work.*\)$"
    ):
        simulate(FLOW, bodies={key: takes(1)})


def test_tasks_that_are_built_are_not_known_before() -> None:
    building = flow("built", parallel(lambda state: [dict, work]), race([dict, int]))
    for key in ("anything", "<lambda>", str, "parallel[0]", "race[1]", int):
        simulate(building, bodies={key: takes(1)})
    with pytest.raises(ValueError, match=r"'parallel\[0\]' \(builds its tasks\), 'race\[1\]' \(.*dict.*, .*int.*\)$"):
        simulate(building, bodies={"race[2]": takes(1)})


def test_many_bodies_are_not_all_listed() -> None:
    with pytest.raises(ValueError, match=r"'run\[19\]' \(.*\) and 5 more$"):
        simulate(flow("many", *[run(work)] * 25), bodies={"wrok": takes(1)})


@pytest.mark.parametrize("what", [3, "module:flow", work])
def test_only_a_flow_can_be_simulated(what: Any) -> None:
    with pytest.raises(TypeError, match=r"^simulate\(\) needs a Flow, not .*; import"):
        simulate(what)


# ------------------------------------------------------------------ where it stands


def test_its_repr_says_where_it_stands() -> None:
    sim = simulate(flow("placed", wait(5), run(work)), {"by": 1}, bodies={work: takes(1.5)})
    assert repr(sim) == "<Simulation of 'placed' at 0 ms, in wait[0], attempt 1>"
    sim.advance(6.5)
    assert repr(sim).startswith("<Simulation of 'placed' at 6.5 ms, ended with FlowDone({'by': 'itself'}")


def test_path_attempt_and_trace() -> None:
    sim = simulate(flow("placed", repeat(wait(5), run(work, retries=1))), bodies={work: takes(0, raises=OSError())})
    assert (sim.path, sim.attempt) == ("repeat/wait[0]", 1)
    sim.advance(105)
    assert (sim.path, sim.attempt) == ("repeat/run[1]", 2)
    assert sim.trace == [("repeat", 1), ("repeat/wait[0]", 1), ("repeat/run[1]", 1), ("repeat/run[1]", 2)]


# ------------------------------------------------------------------ the end


def test_after_the_end_signals_say_how_it_ended() -> None:
    sim = simulate(FLOW)
    for call in (sim.signal, sim.update):
        with pytest.raises(FlowNotRunning, match="FlowDone"):
            call(dict)
    sim.stop()
    assert sim.events == [FlowState({"by": "itself"}, seq=1), FlowDone({"by": "itself"}, seq=2)]


def test_an_update_that_ends_the_flow_is_answered() -> None:
    sim = simulate(flow("ends", wait_until(lambda state: "end" in state)))
    assert sim.update(lambda state: state | {"end": 1}) == {"end": 1} and sim.done


def test_stop_cancels_async_bodies_at_once_and_lets_threads_end() -> None:
    async def hangs() -> None:
        await asyncio.Event().wait()

    sim = simulate(flow("stops", parallel(lambda state: [hangs, int])), bodies={int: takes(100)})
    sim.stop()
    assert not sim.done
    sim.advance(100)
    assert sim.events == [FlowStopped({}, seq=1)] and sim.now == 100


def test_a_simulation_that_is_forgotten_leaves_no_coroutine_behind(recwarn: Any, caplog: Any) -> None:
    ended = []

    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    sim = simulate(flow("forgotten", race([hangs, hangs])), bodies={"race": [takes(0), takes(50)]})
    del sim
    gc.collect()
    assert ended == [True] and not recwarn.list and not caplog.records


def test_inside_a_running_event_loop() -> None:
    async def slow(state: State) -> Ok:
        await asyncio.sleep(10)  # stands for work
        return Ok({"loop": id(asyncio.get_running_loop())})

    async def test() -> None:
        sim = simulate(flow("inside", run(slow)))
        sim.advance(10_000)
        assert sim.done and sim.state["loop"] != id(asyncio.get_running_loop())
        await asyncio.sleep(0)

    asyncio.run(test())


def test_async_bodies_have_timeouts_and_groups() -> None:
    async def child(log: list[Any], n: int) -> None:
        await asyncio.sleep(n)  # stands for work
        log.append(n)

    async def body(state: State) -> Ok:
        log: list[Any] = []
        async with asyncio.TaskGroup() as group:
            for n in (3, 1, 2):
                group.create_task(child(log, n))
        try:
            async with asyncio.timeout(0.5):
                await asyncio.Event().wait()
        except TimeoutError:
            log.append("late")
        return Ok({"log": log})

    sim = simulate(flow("structured", run(body)))
    sim.advance(3500)
    assert sim.state == {"log": [1, 2, 3, "late"]}
