"""The benchmarks run, and end, and say what they promise. Whether targets are reached is not asked here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PEERS = {"fork", "zygote", "mp_fork", "mp_forkserver", "mp_spawn"}


@pytest.mark.timeout(70)
def test_a_quick_run_prints_figures_and_writes_them(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "start", "--json", str(file)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
    assert "≤ 4" in run.stdout

    found = json.loads(file.read_text())
    assert found.keys() == {"machine", "options", "start"}
    assert found["machine"].keys() == {"cores", "kernel", "python", "load"}
    start = found["start"]
    assert start.keys() == {"caravela"} | PEERS | {f"per_{peer}" for peer in PEERS}
    assert start["caravela"]["target"] == 4.0
    for name in {"caravela"} | PEERS:
        assert start[name]["n"] == 8
        assert start[name]["p99"] >= start[name]["value"] > 0
    for peer in PEERS:
        assert start[f"per_{peer}"]["value"] == pytest.approx(start["caravela"]["value"] / start[peer]["value"])


def test_an_unknown_part_is_refused() -> None:
    command = [sys.executable, "-m", "benchmarks", "--only", "start,speed"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=15)
    assert run.returncode == 2
    assert "speed: allowed are start, restart, memory, idle, calls" in run.stderr
