"""What a zygote runs in place of a real worker: says what it finds, then does what it is told."""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable

Run = Callable[[int, int, int], int]


def obedient() -> Run:
    return obey


def unfinished() -> Run:
    """A zygote that never gets ready."""
    while True:
        signal.pause()


def immediate() -> Run:
    return lambda reads, writes, page: 0


def obey(reads: int, writes: int, page: int) -> int:
    """Writes a line of facts, then obeys lines until the end of file, which returns 0."""
    with open(reads, closefd=False) as orders, open(writes, "w", closefd=False) as answers:
        print(json.dumps(_facts(page)), file=answers, flush=True)
        for order in orders:
            match order.split():
                case ["return", code]:
                    return int(code)
                case ["raise"]:
                    raise RuntimeError("as told")
                case ["die", name]:
                    os.kill(os.getpid(), signal.Signals[name])
                case ["close", "streams"]:
                    del sys.stdout, sys.stderr
                case ["exit", code]:
                    os._exit(int(code))
                case ["grandchild"]:
                    print(json.dumps({"pid": _grandchild()}), file=answers, flush=True)
                case ["print", text]:
                    print(text)
    return 0


def _grandchild() -> int:
    ready, tell = os.pipe()
    if pid := os.fork():
        os.read(ready, 1)
        return pid
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(tell, b"!")
    while True:
        signal.pause()


def _facts(page: int) -> dict[str, object]:
    with open("/proc/self/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file)
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "session": os.getsid(0),
        "stdin": os.path.realpath("/proc/self/fd/0"),
        "page": os.pread(page, 16, 0).decode(),
        "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")),
        "blocked": int(status["SigBlk"], 16),
        "ignored": [n for n in range(1, 65) if int(status["SigIgn"], 16) >> (n - 1) & 1],
        "caught": int(status["SigCgt"], 16),
        "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "dies_with_parent": _parent_death_signal(),
        "heavy": sorted({"dill", "asyncio", "multiprocess", "numpy", "subprocess", "logging"} & sys.modules.keys()),
        "preloaded": sorted({"colorsys", "sched"} & sys.modules.keys()),
        "draw": __import__("random").random(),
    }


def _parent_death_signal() -> int:
    import ctypes

    number = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(number))  # PR_GET_PDEATHSIG
    return number.value
