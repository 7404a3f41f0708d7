"""From SIGKILL to the next answer."""

import os
import random
import signal
import time

from caravela import Supervisor

from .flows import idle
from .peers import NAMES, Peers
from .report import Figure, Section, ratio
from .timing import interleaved

TARGET = 6.0  # ms


def measure(n: int, order: random.Random) -> Section:
    with Supervisor(max_restarts=1_000_000) as supervisor, Peers() as peers:
        handle = supervisor.start(idle)

        def ours() -> float:
            incarnation, pid = handle.incarnation, handle.pid
            assert pid is not None
            before = time.perf_counter()
            os.kill(pid, signal.SIGKILL)
            handle.get_state()
            while handle.incarnation == incarnation:
                handle.get_state()
            return time.perf_counter() - before

        samples = interleaved({"caravela": ours} | {way: peers.restart(way) for way in NAMES}, n, order)
    caravela = samples["caravela"]
    name_of_ours = "caravela: SIGKILL → same handle answers"
    figures = [Figure.of("caravela", name_of_ours, caravela, "ms", 1e3, target=TARGET)]
    figures += [
        Figure.of(way, f"{name}: SIGKILL → next's first byte", samples[way], "ms", 1e3) for way, name in NAMES.items()
    ]
    figures += [ratio(f"per_{way}", f"caravela ÷ {name}", caravela, samples[way]) for way, name in NAMES.items()]
    return Section("restart", "Restart", figures)
