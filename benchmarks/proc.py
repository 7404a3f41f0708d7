"""What Linux tells about a process (proc(5))."""

import re
from dataclasses import dataclass
from pathlib import Path

_SIZE = re.compile(rb"^(Pss|Private_Clean|Private_Dirty):\s+(\d+) kB", re.MULTILINE)
_SWITCHES = re.compile(rb"^(?:non)?voluntary_ctxt_switches:\s+(\d+)", re.MULTILINE)
MIB = 1024  # kB


@dataclass(frozen=True, slots=True)
class Memory:
    """In MiB. ``pss`` divides each shared page among those who share it; ``own`` counts what nobody shares."""

    pss: float
    own: float


def memory(pid: int | str = "self") -> Memory:
    sizes = {name: int(size) for name, size in _SIZE.findall(Path(f"/proc/{pid}/smaps_rollup").read_bytes())}
    return Memory(sizes[b"Pss"] / MIB, (sizes[b"Private_Clean"] + sizes[b"Private_Dirty"]) / MIB)


@dataclass(frozen=True, slots=True)
class Work:
    """Context switches, voluntary or not, and seconds on a CPU."""

    switches: int
    cpu: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.switches + other.switches, self.cpu + other.cpu)

    def __sub__(self, other: "Work") -> "Work":
        return Work(self.switches - other.switches, self.cpu - other.cpu)


def work(pid: int | str) -> Work:
    """Of all threads that live now."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum((_work_of(task) for task in tasks), Work(0, 0.0))


def thread_work(tid: int) -> Work:
    """Of a thread of this process."""
    return _work_of(Path(f"/proc/self/task/{tid}"))


def _work_of(task: Path) -> Work:
    switches = sum(map(int, _SWITCHES.findall((task / "status").read_bytes())))
    return Work(switches, int((task / "schedstat").read_bytes().split()[0]) / 1e9)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
