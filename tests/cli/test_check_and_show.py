"""``caravela check`` and ``caravela show``."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from caravela.cli.main import main

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where modules are written; what was imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = set(sys.modules)
    yield tmp_path
    for name in sys.modules.keys() - known:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def write(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(f"from caravela import *\nimport threading\n{text}\n")


def check(capsys: pytest.CaptureFixture[str], target: str) -> tuple[int, list[str]]:
    code = main(["check", target])
    return code, capsys.readouterr().out.splitlines()


def test_all_is_well(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, "good", "f = flow('good', wait(5), wait(6), initial_state={'n': 0})")
    code, lines = check(capsys, "good:f")
    assert code == 0 and all(line.startswith("✓ ") for line in lines)
    assert lines[0].startswith("✓ good:f is flow 'good', imported in ")
    assert lines[1:] == [
        "✓ workers import it as good:f",
        "✓ its first state takes 4 bytes",
        "✓ every step can be reached",
    ]


def test_steps_that_are_never_reached(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        folder,
        "endless",
        "f = flow('endless', wait(1), sequence(wait(2), sequence(repeat(wait(3)))), wait(4), sequence(wait(5)))",
    )
    code, lines = check(capsys, "endless:f")
    assert code == 1
    assert [line for line in lines if line.startswith("✗")] == [
        "✗ wait[2] is never reached: sequence[1] does not end",
        "✗ sequence[3] is never reached: sequence[1] does not end",
    ]


def test_a_state_that_cannot_travel(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, "locked", "f = flow('locked', wait(1), initial_state={'lock': threading.Lock()})")
    code, lines = check(capsys, "locked:f")
    assert code == 1
    [wrong] = [line for line in lines if line.startswith("✗")]
    assert "lock" in wrong and "initial_state" in wrong


def test_a_function_that_cannot_travel(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where it has no name in its module, it travels whole."""
    made = "def make(lock):\n    return flow('whole', run(lambda state: lock.acquire()))\n"
    write(folder, "whole", f"{made}class Box: pass\nbox = Box()\nbox.f = make(threading.Lock())\nbox.g = make(len)")
    code, lines = check(capsys, "whole:box.f")
    assert code == 1 and any("closure" in line and "lock" in line for line in lines), lines
    code, lines = check(capsys, "whole:box.g")
    assert code == 0 and any("it travels whole, " in line for line in lines), lines


def test_a_first_state_that_is_made_is_not_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        folder, "factory", "def make():\n    raise SystemExit('no')\nf = flow('factory', wait(1), initial_state=make)"
    )
    code, lines = check(capsys, "factory:f")
    assert code == 0 and "✓ each worker makes its first state by a call, which is not tried here" in lines


def test_a_module_that_raises(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, "broken", "1 / 0")
    assert main(["check", "broken:f"]) == 1
    told = capsys.readouterr()
    assert told.out == "✗ broken:f cannot be imported\n" and "ZeroDivisionError" in told.err


def test_a_flow_is_drawn(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, "drawn", "f = flow('drawn', repeat(wait(5)))")
    assert main(["show", "drawn:f"]) == 0
    assert capsys.readouterr().out == "flow drawn\n└─ repeat\n   └─ wait 5 ms\n"
    assert main(["show", "drawn:f", "--mermaid"]) == 0
    assert capsys.readouterr().out.startswith("flowchart TD\n")


def test_what_it_says_of_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    for command in ("run", "check", "show"):
        assert f" {command} " in told
    for code in ("0 done", "1 failed", "2 wrong", "3 cannot start", "124", "130", "143"):
        assert code in told
