"""What idle flows do: nothing, which is no context switch and no CPU time."""

import select

from caravela import Supervisor

from . import proc
from .flows import idle
from .proc import Work
from .report import Figure, Section

TARGET = 0


def measure(flows: int, seconds: float) -> Section:
    with Supervisor() as supervisor:
        handles = [supervisor.start(idle) for _ in range(flows)]
        for handle in handles:
            handle.get_state()
        pids = [handle.pid for handle in handles if handle.pid]
        zygote = proc.parent(pids[0])
        assert supervisor._household
        loop = supervisor._household.loop.thread.native_id
        assert loop is not None

        def look() -> tuple[Work, Work, Work]:
            return sum(map(proc.work, pids), Work(0, 0.0)), proc.work(zygote), proc.thread_work(loop)

        select.poll().poll(100)  # the last answer's own switches
        before = look()
        select.poll().poll(seconds * 1000)
        workers, zygotes, host = (now - then for now, then in zip(look(), before, strict=True))

    def of(key: str, whose: str, work: Work, target: float | None = None) -> list[Figure]:
        return [
            Figure(f"{key}_switches", f"context switches, {whose}", work.switches, "", target=target),
            Figure(f"{key}_cpu", f"CPU time, {whose}", work.cpu * 1e3, "ms", target=target),
        ]

    figures = of("workers", f"all {flows} workers", workers, TARGET)
    figures += of("zygote", "zygote", zygotes) + of("loop", "the host's loop thread", host)
    return Section("idle", f"{flows} idle flows in {seconds:g} s", figures)
