"""The same names on event loops: nothing blocks them, and cancelling an await never stops a flow."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from flows_under_test import State, bump, finish, give_up, is_done, put
from gates import Keeper, pass_gate
from listening import SOON

from caravela import (
    AsyncFlowHandle,
    AsyncSupervisor,
    BootError,
    FlowBusy,
    FlowCrashed,
    FlowDone,
    FlowFailed,
    FlowNotRunning,
    FlowState,
    FlowStopped,
    FlowTimeout,
    SignalFailed,
    flow,
    run,
    wait_until,
)
from caravela.supervisor import outbox

quick = flow("quick", wait_until(is_done), initial_state={"n": 0})
idle = flow("idle", wait_until(lambda _: False), initial_state={"n": 0})


@pytest.fixture
def keeper(tmp_path: Any) -> Keeper:
    return Keeper.of(str(tmp_path / "gate"))


@pytest.fixture
def on_a_loop(engine: str, keeper: Keeper) -> Callable[..., Any]:
    """Runs ``work(supervisor)`` on a loop of its own, in an open supervisor; then the gate is opened in any case."""

    def on_a_loop(work: Callable[[AsyncSupervisor], Coroutine[Any, Any, Any]], **options: Any) -> Any:
        async def main() -> Any:
            async with AsyncSupervisor(engine=engine, **{"preload": False, **options}) as supervisor:
                try:
                    return await work(supervisor)
                finally:
                    keeper.throw_open()

        return asyncio.run(main())

    return on_a_loop


def refuse(state: State) -> None:
    raise ValueError("as told")


def unloadable() -> State:
    raise ConnectionError("no database here")


# ------------------------------------------------------------------ the same names


def test_a_life(on_a_loop: Callable[..., Any]) -> None:
    async def work(supervisor: AsyncSupervisor) -> None:
        handle = await supervisor.start(quick, name="one", tag="a tag")
        assert supervisor.get("one") == handle and supervisor.children() == [handle]
        assert (handle.status, handle.incarnation, supervisor.count_children()) == ("running", 1, 1)
        await handle.signal(bump)
        assert await handle.update(bump) == {"n": 2}
        assert await handle.get_state() == {"n": 2} == handle.last_state
        events = handle.subscribe()
        await handle.signal(finish)
        assert isinstance(await handle.wait(SOON), FlowDone)
        assert await handle.result() == {"n": 2, "done": True}
        assert [type(event) for event in [event async for event in events]] == [FlowState, FlowDone]
        assert isinstance(await handle.stop(), FlowDone)
        with pytest.raises(FlowNotRunning):
            await handle.update(bump)
        with pytest.raises(FlowNotRunning):
            await handle.signal(bump)

    on_a_loop(work)


def test_what_goes_wrong(on_a_loop: Callable[..., Any]) -> None:
    async def work(supervisor: AsyncSupervisor) -> None:
        with pytest.raises(BootError, match="no database here"):
            await supervisor.start(flow("boots", run(bump), initial_state=unloadable))
        handle = await supervisor.start(idle)
        with pytest.raises(SignalFailed, match="as told"):
            await handle.update(refuse)
        with pytest.raises(FlowTimeout):
            await handle.wait(0.01)
        with pytest.raises(TypeError, match="must be a number of seconds"):
            await handle.get_state(timeout="soon")  # type: ignore[arg-type]  # on purpose
        assert await handle.get_state() == {"n": 0}
        failing = await supervisor.start(flow("fails", run(give_up), initial_state={}))
        with pytest.raises(FlowFailed):
            await failing.result(SOON)

    on_a_loop(work)


def test_the_end_of_with_stops_the_flow(on_a_loop: Callable[..., Any]) -> None:
    async def work(supervisor: AsyncSupervisor) -> None:
        async with await supervisor.start(idle) as handle:
            assert await handle.update(bump) == {"n": 1}
        assert isinstance(await handle.wait(), FlowStopped)
        other = await supervisor.start(idle)
        assert isinstance(await supervisor.stop(other), FlowStopped)

    on_a_loop(work)


def test_the_end_of_the_supervisor_stops_all(on_a_loop: Callable[..., Any]) -> None:
    async def work(supervisor: AsyncSupervisor) -> list[AsyncFlowHandle]:
        return [await supervisor.start(idle) for _ in range(3)]

    assert [handle.status for handle in on_a_loop(work)] == ["stopped"] * 3


def test_many_at_once(on_a_loop: Callable[..., Any]) -> None:
    async def work(supervisor: AsyncSupervisor) -> None:
        handles = await asyncio.gather(*(supervisor.start(idle) for _ in range(8)))
        await asyncio.gather(*(handle.update(bump) for handle in handles for _ in range(10)))
        assert [(await handle.get_state())["n"] for handle in handles] == [10] * 8

    on_a_loop(work)


# ------------------------------------------------------------------ cancelling


def at_the_gate(state: State, path: str) -> State:
    pass_gate(path)
    return state | {"n": state["n"] + 1}


def test_cancelling_never_stops_the_flow(on_a_loop: Callable[..., Any], keeper: Keeper) -> None:
    async def work(supervisor: AsyncSupervisor) -> None:
        handle = await supervisor.start(idle)
        updating = asyncio.create_task(handle.update(at_the_gate, keeper.path))
        await asyncio.to_thread(keeper.meet)
        waiting = [asyncio.create_task(call) for call in (handle.get_state(), handle.wait(), handle.subscribe().get())]
        await asyncio.sleep(0)
        for task in (updating, *waiting):
            task.cancel()
        done = await asyncio.gather(updating, *waiting, return_exceptions=True)
        assert {type(outcome) for outcome in done} == {asyncio.CancelledError}
        keeper.open()
        assert await handle.get_state() == {"n": 1}, "the worker had it"
        assert not handle._runner._inbox.open_calls()

    on_a_loop(work)


def test_a_start_that_is_cancelled_leaves_no_flow(on_a_loop: Callable[..., Any], keeper: Keeper) -> None:
    async def work(supervisor: AsyncSupervisor) -> None:
        slow = flow("slow", wait_until(is_done), initial_state=lambda: at_the_gate({"n": 0}, keeper.path))
        everybody = supervisor.subscribe((FlowStopped,))
        starting = asyncio.create_task(supervisor.start(slow))
        await asyncio.to_thread(keeper.meet)
        starting.cancel()
        keeper.open()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert isinstance(await everybody.get(SOON), FlowStopped)

    on_a_loop(work)


def test_a_stop_that_is_cancelled_stops_all_the_same(on_a_loop: Callable[..., Any]) -> None:
    async def work(supervisor: AsyncSupervisor) -> None:
        handle = await supervisor.start(idle)
        stopping = asyncio.create_task(handle.stop())
        await asyncio.sleep(0)
        stopping.cancel()
        assert isinstance(await handle.wait(SOON), FlowStopped)

    on_a_loop(work)


def stays(state: State, path: str) -> State:
    pass_gate(path)
    return state


@pytest.mark.parametrize("engine", ["process"], indirect=True)
def test_a_close_that_is_cancelled_kills(engine: str, keeper: Keeper) -> None:
    async def main() -> float:
        supervisor = await AsyncSupervisor(engine=engine, shutdown=30, preload=False).open()
        handle = await supervisor.start(idle)
        await handle.signal(stays, keeper.path)
        await asyncio.to_thread(keeper.meet)
        began = time.monotonic()
        closing = asyncio.create_task(supervisor.close())
        while handle.status != "stopping":
            await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert isinstance(await handle.wait(), FlowStopped) and not supervisor.running
        keeper.throw_open()
        return time.monotonic() - began

    assert asyncio.run(main()) < 10


# ------------------------------------------------------------------ listening


def test_a_queue_of_the_loop(on_a_loop: Callable[..., Any]) -> None:
    async def work(supervisor: AsyncSupervisor) -> None:
        inbox: asyncio.Queue[Any] = asyncio.Queue()
        small: asyncio.Queue[Any] = asyncio.Queue(1)
        handle = await supervisor.start(quick, notify=inbox)
        other = await supervisor.start(quick, notify=small)
        for one in (handle, other):
            await one.update(bump)
            await one.update(bump)
            await one.signal(finish)
            await one.wait(SOON)
        assert [type(await inbox.get()) for _ in range(4)] == [FlowState, FlowState, FlowState, FlowDone]
        assert isinstance(await small.get(), FlowState)
        assert small.empty(), "what it did not take is lost"

    on_a_loop(work)


def test_a_queue_without_a_loop_says_so(supervisor: Any) -> None:
    with pytest.raises(TypeError, match="is told on the loop that runs at start, and none runs here"):
        supervisor.start(idle, notify=asyncio.Queue())


def test_a_subscription_of_the_other_kind_is_read_too(on_a_loop: Callable[..., Any], supervisor: Any) -> None:
    handle = supervisor.start(quick)

    async def read() -> list[type]:
        with handle.subscribe() as events:
            handle.signal(finish)
            return [type(event) async for event in events]

    assert asyncio.run(read()) == [FlowState, FlowDone]


def test_get_of_a_subscription(on_a_loop: Callable[..., Any]) -> None:
    async def work(supervisor: AsyncSupervisor) -> None:
        handle = await supervisor.start(idle)
        async with handle.subscribe() as events:
            with pytest.raises(queue.Empty):
                await events.get(0.01)
            reading = asyncio.create_task(events.get())
            await asyncio.sleep(0)
            await handle.update(bump)
            assert (await reading).state == {"n": 1}  # type: ignore[attr-defined]  # a FlowState
        with pytest.raises(FlowNotRunning, match="this subscription has ended"):
            await events.get()

    on_a_loop(work)


# ------------------------------------------------------------------ never a blocked loop


def test_a_full_flow_is_an_error_at_once(on_a_loop: Callable[..., Any], keeper: Keeper) -> None:
    async def work(supervisor: AsyncSupervisor) -> None:
        handle = await supervisor.start(idle)
        await handle.signal(at_the_gate, keeper.path)
        await asyncio.to_thread(keeper.meet)
        for _ in range(2):
            await handle.signal(put, "pad", "x" * (outbox.LIMIT // 2))
        with pytest.raises(FlowBusy):
            await handle.signal(put, "pad", "")
        keeper.open()
        while True:
            try:
                assert (await handle.get_state())["n"] == 1
                break
            except FlowBusy:
                await asyncio.sleep(0)

    on_a_loop(work)


def test_loops_in_many_threads(engine: str) -> None:
    found: list[Any] = []

    async def main(supervisor: AsyncSupervisor, handle: AsyncFlowHandle) -> None:
        await asyncio.gather(*(handle.update(bump) for _ in range(10)))
        own = await supervisor.start(idle)
        found.append((await own.update(bump), await own.stop()))

    async def outer() -> int:
        async with AsyncSupervisor(engine=engine, preload=False) as supervisor:
            handle = await supervisor.start(idle)
            threads = [threading.Thread(target=lambda: asyncio.run(main(supervisor, handle))) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                await asyncio.to_thread(thread.join)
            state: State = await handle.get_state()
            return int(state["n"])

    assert asyncio.run(outer()) == 30
    assert [state for state, _ in found] == [{"n": 1}] * 3


def test_the_loop_is_never_held_up(on_a_loop: Callable[..., Any], keeper: Keeper) -> None:
    """While flows start, answer, are waited for, refuse and stop, the loop turns without a long pause."""

    async def work(supervisor: AsyncSupervisor) -> float:
        longest, going = 0.0, True

        async def turn() -> None:
            nonlocal longest
            before = time.monotonic()
            while going:
                await asyncio.sleep(0)
                now = time.monotonic()
                longest, before = max(longest, now - before), now

        turning = asyncio.create_task(turn())
        handle = await supervisor.start(idle)
        busy = asyncio.create_task(handle.update(at_the_gate, keeper.path, timeout=SOON))
        await asyncio.to_thread(keeper.meet)
        with pytest.raises(FlowTimeout):
            await handle.get_state(0.2)
        others = await asyncio.gather(*(supervisor.start(idle) for _ in range(4)))
        await asyncio.gather(*(other.stop() for other in others))
        keeper.open()
        await busy
        going = False
        await turning
        return longest

    assert on_a_loop(work) < 0.15


@pytest.mark.parametrize("engine", ["process"], indirect=True)
def test_who_waits_hears_of_a_crash(on_a_loop: Callable[..., Any], keeper: Keeper) -> None:
    async def work(supervisor: AsyncSupervisor) -> None:
        handle = await supervisor.start(idle)
        updating = asyncio.create_task(handle.update(at_the_gate, keeper.path, timeout=SOON))
        await asyncio.to_thread(keeper.meet)
        supervisor._supervisor._household.engine.kill(handle._runner._key)  # type: ignore[union-attr]  # it is open
        keeper.throw_open()
        with pytest.raises(FlowCrashed):
            await updating
        assert await handle.get_state() == {"n": 0}

    on_a_loop(work)
