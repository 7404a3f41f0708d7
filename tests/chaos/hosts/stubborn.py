"""Flows that are hard to end; importable, so that workers load them by name."""

import os
import re
import signal
import subprocess
import threading
from typing import Any

from caravela import flow, run, set_state, wait_until


def spin(state: Any) -> None:
    """One call of C code that does not let go of the interpreter: 2**60 ways to fail."""
    re.match(r"(a+)+$", "a" * 60 + "b")


def hang(state: Any) -> None:
    """Does not care for ``stopping()``."""
    threading.Event().wait()


def breed(state: Any) -> dict[str, Any]:
    """One grandchild by exec, and one by fork that holds the worker's pipes and ignores SIGTERM."""
    execed = subprocess.Popen(["sleep", "1000"])
    ready, tell = os.pipe()
    if (forked := os.fork()) == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(tell, b"!")
        while True:
            signal.pause()
    os.read(ready, 1)
    return {"grandchildren": [execed.pid, forked]}


def turn_deaf(state: Any) -> Any:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return state | {"deaf": True}


def never(state: Any) -> bool:
    return False


idle = flow("idle", wait_until(never))
spinner = flow("spinner", run(spin))
mother = flow("mother", set_state(breed), wait_until(never))
deaf = flow("deaf", set_state(turn_deaf), run(hang))
