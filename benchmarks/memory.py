"""What many idle flows cost: the memory of each, of their zygote and of the host, and the time to reach all."""

import gc
import queue
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

from caravela import FlowHandle, FlowState, Supervisor

from . import proc
from .flows import collect, count, idle
from .report import Figure, Section
from .timing import Sample

TARGET = 2.0  # MiB
TARGET_AT = 100
FDS_PER_FLOW = 4
FDS_BESIDES = 100
PATIENCE = 60.0


def measure(counts: tuple[int, ...]) -> Section:
    figures: list[Figure] = []
    notes: list[str] = []
    for flows in counts:
        with _enough_fds(flows) as possible:
            if possible < flows:
                notes.append(f"{flows} flows are more than the hard limit of open files allows: {possible} measured")
            figures += _measure(possible, timed=flows == max(counts))
    notes.append("PSS divides shared pages among the sharers, so that of 1 flow carries half of the zygote")
    return Section("memory", "Memory of idle flows", figures, tuple(notes))


def _measure(flows: int, *, timed: bool) -> list[Figure]:
    inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
    with Supervisor(boot_timeout=PATIENCE) as supervisor:
        for _ in range(2):  # the first asks for a branch of the zygote, the second waits for it
            supervisor.start(idle).stop()
        gc.collect()
        host_before = proc.memory().own
        began = time.perf_counter()
        handles = [supervisor.start(idle, notify=inbox, wait=False) for _ in range(flows)]
        _hear_all(handles)
        started = time.perf_counter() - began

        gc.collect()
        host = (proc.memory().own - host_before) / flows
        pids = [handle.pid for handle in handles if handle.pid]
        zygote = proc.memory(proc.parent(pids[0]))
        fresh = [proc.memory(pid) for pid in pids]
        for handle in handles:
            handle.signal(collect)
        _hear_all(handles)
        collected = Sample(tuple(proc.memory(pid).pss for pid in pids))

        began = time.perf_counter()
        for handle in handles:
            handle.signal(count)
        heard = 0
        while heard < flows:
            heard += isinstance(inbox.get(timeout=PATIENCE), FlowState)
        signalled = time.perf_counter() - began
        began = time.perf_counter()
    stopped = time.perf_counter() - began

    of = f"of {flows} flow{'s' if flows > 1 else ''}"
    target = TARGET if flows == TARGET_AT else None
    figures = [
        Figure.of(f"pss_{flows}", f"PSS, one {of}", Sample(tuple(m.pss for m in fresh)), "MiB", target=target),
        Figure.of(f"own_{flows}", f"own pages (USS), one {of}", Sample(tuple(m.own for m in fresh)), "MiB"),
        Figure.of(f"pss_collected_{flows}", f"PSS after gc.collect(), one {of}", collected, "MiB", target=target),
        Figure(f"zygote_{flows}", f"PSS of the branch of the zygote {of}", zygote.pss, "MiB"),
        Figure(f"host_{flows}", f"growth of the host per flow, {of}", host * 1024, "KiB"),
    ]
    if timed:
        figures += [
            Figure(f"start_all_{flows}", f"start and answer, all {of}", started, "s"),
            Figure(f"signal_all_{flows}", f"signal and hear, all {of}", signalled * 1e3, "ms"),
            Figure(f"stop_all_{flows}", f"stop, all {of}", stopped, "s"),
        ]
    return figures


def _hear_all(handles: list[FlowHandle]) -> None:
    for handle in handles:
        handle.get_state(timeout=PATIENCE)


@contextmanager
def _enough_fds(flows: int) -> Iterator[int]:
    """Raises the soft limit as far as it goes; yields how many flows fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = flows * FDS_PER_FLOW + FDS_BESIDES
    allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    try:
        yield min(flows, (max(soft, allowed) - FDS_BESIDES) // FDS_PER_FLOW if soft >= 0 else flows)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
