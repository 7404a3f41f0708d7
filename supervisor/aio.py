"""``AsyncSupervisor`` and ``AsyncFlowHandle``: the same names for event loops, which they never block.

The supervisor's own thread reads what workers say and wakes the loop of whoever waits for it. So one supervisor may
serve many loops in many threads. Cancelling an await never stops a flow; ``async with handle`` does.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from types import TracebackType
from typing import Any, Self

from caravela.errors import FlowTimeout

from ..flows.flow import Flow
from ..flows.outcomes import UNSET
from ..protocol import messages
from .awaiting import Waker, every_event, latched, next_event
from .calls import Call
from .entries import Asking, Sending
from .events import Event, Terminal
from .handle import FlowHandle, Function, Known
from .latch import Latch
from .spec import Restart, seconds
from .subscribers import DEFAULT_KINDS, Subscription, expected
from .supervisor import Supervisor, why_refused


class AsyncSubscription:
    """As :class:`.subscribers.Subscription`, read by ``async for`` or ``await get()``."""

    __caravela_unportable__ = "a subscription stays in the process of its supervisor"

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    async def get(self, timeout: float | None = None) -> Event:
        """The next event. ``queue.Empty`` after ``timeout`` seconds; ``FlowNotRunning`` where none will ever come."""
        if timeout is not None:
            seconds("timeout", timeout)
        return expected(await next_event(self._subscription, timeout))

    def __aiter__(self) -> AsyncIterator[Event]:
        return every_event(self._subscription)

    def close(self) -> None:
        """No more events; what waits can still be read. Idempotent."""
        self._subscription.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class AsyncFlowHandle(Known):
    """One flow, for coroutines of any loop. As ``FlowHandle``, except that a full flow is ``FlowBusy`` at once.

    ``async with`` stops the flow at its end.
    """

    __slots__ = ()

    async def signal(self, function: Function, *args: Any) -> None:
        """See :meth:`FlowHandle.signal`."""
        self._begin(None, bounded=False)
        self._runner.line.tell(self._sending(function, args, "signal"), 0.0)

    async def update(self, function: Function, *args: Any, timeout: float = 5.0) -> Any:
        """See :meth:`FlowHandle.update`. Cancelled before the worker has all of it, it is not applied."""
        self._begin(timeout)
        waker = Waker()
        call, entry = self._asked_to_update(function, args, waker)
        return self._updated(call, await self._ask(call, entry, waker, timeout))

    async def get_state(self, timeout: float = 5.0) -> Any:
        """See :meth:`FlowHandle.get_state`."""
        self._begin(timeout)
        waker = Waker()
        call = Call("get_state", latch=waker)
        return self._decode(await self._ask(call, Asking(messages.Query(call.id), call), waker, timeout))

    async def _ask(self, call: Call, entry: Sending | Asking, waker: Waker, timeout: float) -> bytes:
        line = self._runner.line
        line.post(call, entry)
        try:
            if not await waker.wait(timeout):
                line.give_up(call, timeout)
        except asyncio.CancelledError:
            line.forget(call)
            raise
        return line.outcome(call)

    def subscribe(
        self, kinds: type[Event] | tuple[type[Event], ...] = DEFAULT_KINDS, maxsize: int = 1024
    ) -> AsyncSubscription:
        """See :meth:`FlowHandle.subscribe`."""
        return AsyncSubscription(FlowHandle(self._runner, self._check).subscribe(kinds, maxsize))

    async def wait(self, timeout: float | None = None) -> Terminal:
        """See :meth:`FlowHandle.wait`."""
        return await self._ended("wait", timeout)

    async def result(self, timeout: float | None = None) -> Any:
        """See :meth:`FlowHandle.result`."""
        return self._result_of(await self._ended("result", timeout))

    async def stop(self, timeout: float | None = None) -> Terminal:
        """See :meth:`FlowHandle.stop`. Cancelled, it has asked for the stop all the same."""
        self._begin(timeout, bounded=False)
        self._runner.stop()
        await self._await(self._runner.gone, "stop", timeout)
        return await self._ended("stop", None)

    async def _ended(self, call: str, timeout: float | None) -> Terminal:
        self._begin(timeout, bounded=False)
        await self._await(self._runner.ended, call, timeout)
        assert self._runner.end is not None
        return self._runner.end.for_another()

    async def _await(self, latch: Latch, call: str, timeout: float | None) -> None:
        if not await latched(latch, timeout):
            raise FlowTimeout(call, self.name, timeout or 0.0, self._runner.doing())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


class AsyncSupervisor:
    """An asynchronous context manager; everything in it ends with it. Options as those of ``Supervisor``.

    What does not wait (``get``, ``children``, ``count_children``, ``subscribe``) is no coroutine.
    """

    __caravela_unportable__ = "a supervisor stays in its process"

    def __init__(self, **options: Any) -> None:
        self._supervisor = Supervisor(**options)

    async def open(self) -> Self:
        """What ``async with`` does first."""
        try:
            await _undisturbed(asyncio.to_thread(self._supervisor.open))
        except asyncio.CancelledError:
            await _undisturbed(asyncio.to_thread(self._supervisor.close))
            raise
        return self

    async def close(self) -> None:
        """Stops all flows and ends what served them; see :meth:`Supervisor.close`. Cancelled, it kills them instead."""
        closing = asyncio.ensure_future(asyncio.to_thread(self._supervisor.close))
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            self._supervisor.hurry()
            await _undisturbed(closing)
            raise

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def running(self) -> bool:
        """Open, and in the process that opened it."""
        return self._supervisor.running

    async def start(
        self,
        flow: Flow | str,
        *,
        initial_state: Any = UNSET,
        notify: Any = None,
        tag: Any = None,
        name: str | None = None,
        wait: bool = True,
        restart: Restart | None = None,
    ) -> AsyncFlowHandle:
        """See :meth:`Supervisor.start`. ``notify`` may also be an ``asyncio.Queue`` of the loop that runs here.

        Cancelled, it stops what it has started: nobody would hold its handle.
        """
        runner = self._supervisor.prepare(flow, initial_state, notify, tag, name, restart, quiet=wait)
        self._supervisor.admit(runner, unique=name is not None)
        try:
            if wait:
                await latched(runner.up)
                if not runner.was_up:
                    await latched(runner.gone)
                    raise why_refused(runner)
        except BaseException:
            runner.stop()
            raise
        return AsyncFlowHandle(runner, self._supervisor.check_process)

    def get(self, name_or_id: str) -> AsyncFlowHandle:
        """See :meth:`Supervisor.get`."""
        return _for_loops(self._supervisor.get(name_or_id))

    def children(self) -> list[AsyncFlowHandle]:
        """See :meth:`Supervisor.children`."""
        return [_for_loops(handle) for handle in self._supervisor.children()]

    def count_children(self) -> int:
        """See :meth:`Supervisor.count_children`."""
        return self._supervisor.count_children()

    async def stop(self, handle: AsyncFlowHandle, timeout: float | None = None) -> Terminal:
        """``await handle.stop(timeout)``."""
        if not isinstance(handle, AsyncFlowHandle):
            raise TypeError(f"handle={handle!r} must be an AsyncFlowHandle, as start(…) returns it")
        return await handle.stop(timeout)

    def subscribe(
        self, kinds: type[Event] | tuple[type[Event], ...] = DEFAULT_KINDS, maxsize: int = 1024
    ) -> AsyncSubscription:
        """See :meth:`Supervisor.subscribe`."""
        return AsyncSubscription(self._supervisor.subscribe(kinds, maxsize))


def _for_loops(handle: FlowHandle) -> AsyncFlowHandle:
    return AsyncFlowHandle(handle._runner, handle._check)


async def _undisturbed(work: Awaitable[Any]) -> None:
    """Waits for it also when cancelled, and is cancelled then."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
