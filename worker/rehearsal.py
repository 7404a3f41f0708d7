"""The zygote lives a worker's life a few times, so that its workers find that done which changes memory only once.

Python rewrites bytecode as it runs it, fills caches and splits free memory; in a fork each such page is copied, at
about 4 µs and 4 KiB. Twenty rehearsals cost the zygote 10 ms and save every worker 0.5 ms and 0.4 MiB.
"""

import importlib
import os
import pickle
import sys
from functools import partial
from importlib.machinery import PathFinder
from typing import Final

from ..protocol import codec, payload
from ..protocol.messages import VERSION, Hello, Ping, Query, Signal, Start, Stop, ToWorker
from ..protocol.status import Page
from . import boot, exits
from .main import run
from .zygote import Run

TIMES: Final = 20
PLAYED: Final = f"{__package__}.played"


SWITCH: Final = 0.0005
"""Seconds that a body on a thread may keep the interpreter while the loop wants it (Python's own: 0.005)."""


def prepared() -> Run:
    """What the zygote runs in its workers, warm. What it can make for them, it makes: a fork gives each its own."""
    sys.setswitchinterval(SWITCH)
    boot.known = boot.surroundings()
    cue = pickle.dumps(importlib.import_module(PLAYED).cue)
    for _ in range(TIMES):
        _rehearse(cue)
    return partial(run, decoder=codec.Decoder("to_worker"))


def _rehearse(cue: bytes) -> None:
    """Everything that it hears lies in its pipe before it begins, so it waits for nothing; no body, so no thread."""
    sys.modules.pop(PLAYED, None)
    PathFinder.find_spec("a module that is nowhere")  # looks into every folder of the path, and remembers them
    (reads, orders), (answers, writes) = os.pipe(), os.pipe()
    page, shared = Page.create()
    flow_name, options = payload.encode(f"{PLAYED}:played"), payload.encode({"interest": 2})
    script: list[ToWorker] = [
        Hello(VERSION, os.getpid(), b""),
        Start(flow_name, b"", options, b""),
        Ping(1),
        Signal(1, 1, payload.encode("cue"), b""),
        Signal(2, 0, cue, b""),
        Query(2),
        Stop("over"),
    ]
    os.write(orders, b"".join(map(codec.encode, script)))
    code = run(reads, writes, shared, home=True)
    assert code == exits.ENDED, f"the rehearsal ended with {code}"
    page.close()
    for fd in (reads, orders, answers, writes, shared):
        os.close(fd)
