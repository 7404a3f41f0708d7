"""The benchmarks run, and end, and say what they promise. Whether targets are reached is not asked here."""

import importlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PEERS = {"fork", "zygote", "mp_fork", "mp_forkserver", "mp_spawn"}
COMPARED = {"caravela"} | PEERS | {f"per_{peer}" for peer in PEERS}
OF_FLOWS = ("pss", "own", "pss_collected", "zygote", "host")  # what is said of each number of flows
OF_MOST = ("start_all", "signal_all", "stop_all")  # and of the greatest one
CALLS = {"pipe", "socket", "get_state", "update"}
ROWS = {
    "start": COMPARED,
    "restart": COMPARED,
    "memory": {f"{row}_{flows}" for row in OF_FLOWS for flows in (1, 20)} | {f"{row}_20" for row in OF_MOST},
    "idle": {f"{whose}_{what}" for whose in ("workers", "zygote", "loop") for what in ("switches", "cpu")},
    "calls": CALLS | {f"{call}_per_{bare}" for call in ("get_state", "update") for bare in ("pipe", "socket")},
}
TITLES = ("Start\n", "Restart\n", "Memory of idle flows\n", "20 idle flows in 1 s\n", "Calls, all on CPU ")
TARGETS = {
    ("start", "caravela"): 4.0,  # ms
    ("restart", "caravela"): 6.0,  # ms
    ("idle", "workers_switches"): 0,
    ("idle", "workers_cpu"): 0,  # ms
}


@pytest.mark.timeout(70)
def test_a_quick_run_prints_figures_and_writes_them(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--json", str(file)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")

    found = json.loads(file.read_text())
    assert found.pop("machine").keys() == {"cores", "kernel", "python", "load"}
    assert found.pop("options")["only"] == list(ROWS)
    assert {part: set(rows) for part, rows in found.items()} == ROWS
    targets = {(part, key): row["target"] for part, rows in found.items() for key, row in rows.items()}
    assert {at: target for at, target in targets.items() if target is not None} == TARGETS

    _, *tables, reached = run.stdout.split("\n\n")
    for title, table, rows in zip(TITLES, tables, found.values(), strict=True):
        assert table.startswith(title)
        assert {row["name"] for row in rows.values()} <= {line.split("  ")[0] for line in table.splitlines()}
    assert " ≤ 4 " in tables[0] and " ≤ 6 " in tables[1]
    assert reached.startswith("targets reached: ")

    for part in ("start", "restart"):
        for way in {"caravela"} | PEERS:
            assert found[part][way]["n"] == 8
            assert found[part][way]["p99"] >= found[part][way]["value"] > 0
        for peer in PEERS:
            ratio = found[part]["caravela"]["value"] / found[part][peer]["value"]
            assert found[part][f"per_{peer}"]["value"] == pytest.approx(ratio)
    for row in ("pss_20", "own_20", "pss_collected_20"):
        assert found["memory"][row]["n"] == 20 and found["memory"][row]["value"] > 0


def test_a_whole_run_measures_what_the_targets_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not done here, for it takes a minute; only looked at."""
    monkeypatch.syspath_prepend(str(ROOT))
    benchmarks = importlib.import_module("benchmarks.__main__")
    asked: dict[str, tuple[Any, ...]] = {}

    def noted(part: str) -> Any:
        def measure(*arguments: Any) -> Any:
            asked[part] = tuple(one for one in arguments if not isinstance(one, random.Random))
            return benchmarks.Section(part, part, [])

        return measure

    for part in ("starting", "dying", "memory", "idling", "calls"):
        monkeypatch.setattr(getattr(benchmarks, part), "measure", noted(part))
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    assert benchmarks.main() == 0
    assert asked == {
        "starting": (100,),
        "dying": (100,),
        "memory": ((1, 100, 1000),),
        "idling": (100, 10.0),
        "calls": (10_000, min(os.sched_getaffinity(0))),
    }
    assert (benchmarks.memory.TARGET_AT, benchmarks.memory.TARGET) == (100, 2.0)


def test_an_unknown_part_is_refused() -> None:
    command = [sys.executable, "-m", "benchmarks", "--only", "start,speed"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=15)
    assert run.returncode == 2
    assert "speed: allowed are start, restart, memory, idle, calls" in run.stderr
