"""Every case of ``portability/cases.py``, sent from every kind of module, to a worker in a process of its own."""

import ast
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "portability"
CASES = FOLDER / "cases.py"
DRIVE = "import driver; driver.drive(globals())\n"
TEST = "def test_it():\n    import driver; driver.drive(globals(), changes={changes})\n"


def names(generator: str) -> list[str]:
    """The names that a generator of the cases yields, read and not run."""
    tree = ast.parse(CASES.read_text())
    found = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == generator)
    yields = (node.value for node in ast.walk(found) if isinstance(node, ast.Yield))
    return [ast.literal_eval(value.elts[0]) for value in yields if isinstance(value, ast.Tuple)]


def script(folder: Path, *, end: str = DRIVE, name: str = "program.py") -> str:
    path = folder / name
    path.write_text(CASES.read_text() + "\n\n" + end)
    return str(path)


def under_pytest(folder: Path, mode: str) -> list[str]:
    script(folder, end=TEST.format(changes=mode == "importlib"), name="test_program.py")
    # -P: without the folder in sys.path, so that importlib's module cannot be imported by another process.
    return [
        "-P",
        "-m",
        "pytest",
        "-q",
        "-s",
        "-c",
        os.devnull,
        "-p",
        "no:cacheprovider",
        f"--import-mode={mode}",
        str(folder),
    ]


WAYS: dict[str, Callable[[Path], list[str]]] = {
    "unguarded script": lambda folder: [script(folder)],
    "guarded script": lambda folder: [script(folder, end=f"if __name__ == '__main__':\n    {DRIVE}")],
    "-m": lambda folder: ["-m", Path(script(folder)).stem],
    "-c": lambda folder: ["-c", Path(script(folder)).read_text()],
    "stdin": lambda folder: ["-"],
    "importable module": lambda folder: ["-c", "import cases, driver; driver.drive(vars(cases), changes=False)"],
    "pytest importlib": lambda folder: under_pytest(folder, "importlib"),
    "pytest prepend": lambda folder: under_pytest(folder, "prepend"),
}
MIRRORED = [way for way in WAYS if way not in ("importable module", "pytest prepend")]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    """One host and one worker for each way, at the first case that asks."""

    @functools.cache
    def run(way: str) -> dict[str, str]:
        folder = tmp_path_factory.mktemp("way")
        environment = os.environ | {"PYTHONPATH": str(FOLDER), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, *WAYS[way](folder)],
            cwd=folder, env=environment, input=CASES.read_text() + "\n\n" + DRIVE if way == "stdin" else "",
            capture_output=True, text=True,
        )  # fmt: skip
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        assert lines, done.stdout + done.stderr
        results: dict[str, str] = json.loads(lines[-1])
        return results

    return run


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", names("cases"))
def test_it_travels(outcome: Callable[[str], dict[str, str]], way: str, case: str) -> None:
    assert outcome(way)[case] == "ok"


@pytest.mark.parametrize("way", MIRRORED)
@pytest.mark.parametrize("case", names("changes"))
def test_the_host_goes_on(outcome: Callable[[str], dict[str, str]], way: str, case: str) -> None:
    assert outcome(way)[case] == "ok"
