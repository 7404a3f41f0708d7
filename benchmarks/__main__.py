"""Raw figures and ratios of one run, with the targets and whether they were reached.

    python -m benchmarks [--quick] [--only start,restart,memory,idle,calls] [--json FILE] [--cpu K] [--seed N]

Ways that are compared are measured in random order in this same run: on a busy machine trust the ratios.
Ends by itself, in about a minute (``--quick``: some seconds, with too few values for a p99).
"""

import argparse
import contextlib
import json
import os
import py_compile
import random
import sys
from collections.abc import Callable
from pathlib import Path

from . import calls, dying, idling, memory, report, starting
from .report import Section

Part = Callable[[], Section]

PARTS = ("start", "restart", "memory", "idle", "calls")


def main() -> int:
    options = _options()
    _write_bytecode()
    order, quick = random.Random(options.seed), options.quick
    parts: dict[str, Part] = {
        "start": lambda: starting.measure(8 if quick else 100, order),
        "restart": lambda: dying.measure(8 if quick else 100, order),
        "memory": lambda: memory.measure((1, 20) if quick else (1, 100, 1000)),
        "idle": lambda: idling.measure(20 if quick else 100, 1.0 if quick else 10.0),
        "calls": lambda: calls.measure(500 if quick else 10_000, order, options.cpu),
    }
    machine = report.machine()
    print(report.machine_line(machine), f"seed {options.seed}", sep=" · ")
    sections = []
    for name in options.only:
        sections.append(parts[name]())
        print(f"\n{report.table(sections[-1])}", flush=True)
    aims = [figure for section in sections for figure in section.figures if figure.target is not None]
    if aims:
        print(f"\ntargets reached: {sum(bool(figure.reached) for figure in aims)} of {len(aims)}")
    if options.json:
        asked = {"quick": quick, "only": options.only, "seed": options.seed, "cpu": options.cpu}
        options.json.write_text(json.dumps(report.as_data(machine, asked, sections), indent=1) + "\n")
    return 0


def _write_bytecode() -> None:
    """As after any first run. Where PYTHONDONTWRITEBYTECODE is set every worker would compile the flow's module."""
    for module in ("__init__.py", "flows.py"):
        with contextlib.suppress(OSError):  # a folder that nobody may write to
            py_compile.compile(str(Path(__file__).with_name(module)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What flows cost, beside bare processes.")
    parser.add_argument("--quick", action="store_true", help="few repetitions and few flows: does it work at all?")
    parser.add_argument("--only", type=_parts, default=list(PARTS), metavar="A,B", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--cpu", type=_cpu, default=min(os.sched_getaffinity(0)), help="the core for calls")
    parser.add_argument("--seed", type=int, default=1, help="of the order (default 1)")
    return parser.parse_args()


def _parts(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: allowed are {', '.join(PARTS)}")
    return [name for name in PARTS if name in names]


def _cpu(text: str) -> int:
    if text.isdecimal() and int(text) in os.sched_getaffinity(0):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text}: this process may use {sorted(os.sched_getaffinity(0))}")


if __name__ == "__main__":
    sys.exit(main())
