"""From nothing to the first answer."""

import random
import time

from caravela import Supervisor

from .flows import idle
from .peers import NAMES, Peers
from .report import Figure, Section, ratio
from .timing import interleaved

TARGET = 4.0  # ms


def measure(n: int, order: random.Random) -> Section:
    with Supervisor() as supervisor, Peers() as peers:

        def ours() -> float:
            before = time.perf_counter()
            handle = supervisor.start(idle)
            handle.get_state()
            took = time.perf_counter() - before
            handle.stop()
            return took

        samples = interleaved({"caravela": ours} | {way: peers.start(way) for way in NAMES}, n, order)
    caravela = samples["caravela"]
    figures = [Figure.of("caravela", "caravela: start → first get_state", caravela, "ms", 1e3, target=TARGET)]
    figures += [Figure.of(way, f"{name} → first byte", samples[way], "ms", 1e3) for way, name in NAMES.items()]
    figures += [ratio(f"per_{way}", f"caravela ÷ {name}", caravela, samples[way]) for way, name in NAMES.items()]
    return Section("start", "Start", figures, ("a first byte is less than an answer: no flow, no state, no restarts",))
