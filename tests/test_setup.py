"""What ``scripts/setup`` and its callers promise, against interpreters that only pretend.

A fake Python runs ``-c`` programs for real, as if it were of its version: so the lock is a real lock. Of ``-m`` it
writes down what it was asked for, and makes only as much as the scripts look at: nothing is installed, and no network
is needed. All paths hold spaces and brackets, PATH holds nothing but the fakes and the small tools, and the scripts run
from ``/``.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import pytest

REPOSITORY = Path(__file__).parents[1]
TOOLS = ["bash", "cat", "cp", "cut", "dirname", "env", "grep", "mkdir", "mv", "readlink", "realpath", "rm", "sed", "sh"]

BROKEN = "#!/bin/sh\necho this version is not installed >&2; exit 127\n"

FAKE = r"""
import os, sys

version, lacks, base, *args = sys.argv[1:]
lacks = lacks.split(",")
me = os.environ.get("FAKE_VENV_PYTHON", base)  # the python of a fake .venv passes everything on to its base
flags = [args.pop(0)] if args[0] == "-P" else []
what, name, *rest = args
if what == "-c":
    sys.version_info = (*map(int, version.split(".")), "final", 0)
    sys.version = version + " (fake)"
    sys.executable, sys._base_executable = me, base
    if "ensurepip" in lacks:
        sys.modules["ensurepip"] = None
    sys.argv = ["-c", *rest]
    if not flags:
        sys.path.insert(0, os.getcwd())  # as a Python without -P, which this one has, looks for modules there first
    exec(name, {"__name__": "__main__"})
    sys.exit()

import json, shlex  # so late because each is slow
from pathlib import Path

def note(*words):
    line = {"words": words, "cwd": os.getcwd(), "pip": {k: v for k, v in os.environ.items() if k.startswith("PIP_")}}
    with open(os.environ["FAKE_RECORD"], "a") as record:
        print(json.dumps(line), file=record)

if name == "pip" and ("pip" in lacks if me == base else not Path(me).with_name("pip").exists()):
    sys.exit("No module named pip")
if rest == ["--version"]:
    sys.exit()
note(me, *flags, what, name, *rest)
if name == "venv":
    bin = Path(rest[-1], "bin")
    bin.mkdir(parents=True, exist_ok=True)
    for python in bin / "python", bin / "python3":
        python.write_text(f'#!/bin/sh\nFAKE_VENV_PYTHON=$0 exec {shlex.quote(base)} "$@"\n')
        python.chmod(0o755)
    if "--without-pip" not in rest:
        if {"ensurepip", "venv"} & {*lacks}:
            bin.with_name("half-made").touch()
            sys.exit("no ensurepip in here")
        (bin / "pip").touch()
if name == "pip":
    half = Path(rest[1] if rest[0] == "--python" else me).parents[1] / "half-installed"
    half.touch()
    if gate := os.environ.get("FAKE_GATE"):
        Path(gate, "reached").write_text(str(os.getpid()))
        Path(gate, "go").read_text()
        note("pip goes on")
    half.unlink()
sys.exit(json.loads(os.environ.get("FAKE_EXITS", "{}")).get(name, 0))
"""


class Note(TypedDict):
    words: list[str]
    cwd: str
    pip: dict[str, str]  # its part of the environment


@dataclass(frozen=True)
class Clone:
    folder: Path
    root: Path  # in the folder, with a copy of the scripts

    def python(self, name: str, version: str = "3.11.7", lacks: str = "", folder: str = "bin") -> Path:
        """Makes a fake one, in place of any that is there. In ``bin`` it is on PATH."""
        path = self.folder / folder / name
        path.parent.mkdir(exist_ok=True)
        start = [sys.executable, "-I", "-S", self.folder / "fake.py", version, lacks, path]
        path.write_text(BROKEN if version == "broken" else f'#!/bin/sh\nexec {shlex.join(map(str, start))} "$@"\n')
        path.chmod(0o755)
        return path

    def environment(self, variables: dict[str, str]) -> dict[str, str]:
        # The rest stays: the leak check recognises our processes by it.
        rest = {name: value for name, value in os.environ.items() if name != "PYTHON" and not name.startswith("PIP_")}
        path = f"{self.folder / 'bin'}:{self.folder / 'tools'}"
        return rest | {"PATH": path, "FAKE_RECORD": str(self.folder / "record")} | variables

    def run(self, script: str, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command, env = [self.root / "scripts" / script, *args], self.environment(variables)
        return subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, timeout=15, check=False)

    def set_up(self, extras: str = "core", **variables: str) -> list[str]:
        """What a set-up that succeeds asked for."""
        done = self.run("setup", extras, **variables)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr  # stdout is the job's
        return self.asked()

    @contextmanager
    def started(self, extras: str = "core", **variables: str) -> Iterator[subprocess.Popen[bytes]]:
        """One that goes on meanwhile, in a process group of its own; nothing of it outlives the block."""
        command, env = [self.root / "scripts/setup", extras], self.environment(variables)
        process = subprocess.Popen(command, cwd="/", env=env, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    @contextmanager
    def held(self) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
        """One whose pip, the second value, has stopped amid its work. Who writes into ``go`` lets it go on."""
        os.mkfifo(self.folder / "reached")
        os.mkfifo(self.folder / "go")
        with self.started(FAKE_GATE=str(self.folder)) as process:
            yield process, int((self.folder / "reached").read_text())

    def noted(self) -> list[Note]:
        """What the fakes wrote down since the last look."""
        record = self.folder / "record"
        lines = record.read_text().splitlines() if record.exists() else []
        record.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def asked(self) -> list[str]:
        """The same as command lines. Only whole paths get their short names: one that was split shows."""

        def short(word: str) -> str:
            return word.replace(str(self.root), "ROOT").replace(f"{self.folder / 'bin'}/", "")

        return [" ".join(map(short, line["words"])) for line in self.noted()]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    clone = Clone(tmp_path / "my [own] folder", tmp_path / "my [own] folder" / "clone [a b] (2)")
    shutil.copytree(REPOSITORY / "scripts", clone.root / "scripts")
    shutil.copy(REPOSITORY / "pyproject.toml", clone.root)
    (clone.folder / "fake.py").write_text(FAKE)
    (clone.folder / "tools").mkdir()
    for tool in TOOLS:
        (clone.folder / "tools" / tool).symlink_to(shutil.which(tool) or pytest.fail(f"needs {tool}"))
    return clone


def venv(python: str = "python3") -> str:
    return f"{python} -P -m venv ROOT/.venv"


def install(extras: str = "") -> str:
    return f"ROOT/.venv/bin/python -P -m pip install --no-user --editable ROOT/.{extras}"


# ------------------------------------------------------------------ which interpreter


@pytest.mark.parametrize(
    ("chosen", "versions"),
    [
        ("python3", {"python3": "3.11.0", "python3.12": "3.12.1"}),
        ("python3.12", {"python3": "3.10.9", "python3.12": "3.12.1"}),
        ("python3.13", {"python3": "broken", "python3.13": "3.13.0"}),  # a shim for a version that is not there
        ("python", {"python3": "3.9.2", "python": "3.14.0"}),
    ],
)
def test_takes_the_first_python_that_is_new_enough(clone: Clone, chosen: str, versions: dict[str, str]) -> None:
    for name, version in versions.items():
        clone.python(name, version)
    assert clone.set_up(PYTHON="") == [venv(chosen), install()]


def test_the_variable_wins(clone: Clone) -> None:
    clone.python("python3", "3.13.1")
    clone.python("python3.12", "3.12.1")
    assert clone.set_up(PYTHON="python3.12") == [venv("python3.12"), install()]
    other = clone.python("python", "3.11.4", folder="opt [x] y")
    assert clone.set_up(PYTHON=str(other)) == [venv(str(other)), install()]


@pytest.mark.parametrize(
    ("variable", "versions", "why"),
    [
        ("", {}, "python3 (not found)"),
        ("", {"python3": "3.10.9", "python": "2.7.18"}, "python3 (is Python 3.10)"),
        ("", {"python3": "3.10.9", "python": "2.7.18"}, "python (is Python 2.7)"),
        ("", {"python3": "broken"}, "python3 (does not run)"),
        ("python3.10", {"python3": "3.12.1", "python3.10": "3.10.9"}, "python3.10 (is Python 3.10)"),
        ("/no such/python", {"python3": "3.12.1"}, "/no such/python (not found)"),
    ],
)
def test_without_a_python_the_error_says_why(clone: Clone, variable: str, versions: dict[str, str], why: str) -> None:
    for name, version in versions.items():
        clone.python(name, version)
    done = clone.run("setup", PYTHON=variable)
    assert (done.returncode, done.stdout, clone.asked()) == (1, "", [])
    (line,) = done.stderr.splitlines()
    assert line.startswith("set-up: error: ") and "Python 3.11 or newer" in line and why in line
    assert not (clone.root / ".venv").exists()


# ------------------------------------------------------------------ what is made


@pytest.mark.parametrize(("extras", "target"), [("core", ""), ("dev", "[dev]")])
def test_makes_a_venv_and_installs_with_its_pip(clone: Clone, extras: str, target: str) -> None:
    clone.python("python3")
    assert clone.set_up(extras) == [venv(), install(target)]  # and so pip is never upgraded


def test_pip_is_left_its_own_configuration(clone: Clone) -> None:
    clone.python("python3")
    theirs = {"PIP_INDEX_URL": "http://localhost/a b", "PIP_FIND_LINKS": "my wheels", "PIP_NO_INDEX": "1"}
    assert clone.run("setup", **theirs).returncode == 0
    pip = clone.noted()[-1]
    assert (pip["pip"], pip["cwd"]) == (theirs, "/")  # a relative path among them means what it meant


def test_no_module_of_the_callers_folder_is_run(clone: Clone, tmp_path: Path) -> None:
    clone.python("python3")
    for name in ("fcntl", "hashlib", "ensurepip", "os", "sys"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('run by the set-up')")
    command, env = [clone.root / "scripts/setup"], clone.environment({})
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=15, check=False)
    assert (done.returncode, clone.asked()) == (0, [venv(), install()]), done.stderr


@pytest.mark.parametrize("lacks", ["ensurepip", "venv"])
def test_without_ensurepip_the_pip_of_the_interpreter_is_used(clone: Clone, lacks: str) -> None:
    clone.python("python3", lacks=lacks)
    *failed, made, installed = clone.set_up("dev")
    assert failed in ([], [venv()])
    assert made == "python3 -P -m venv --without-pip ROOT/.venv"
    assert installed == "python3 -P -m pip --python ROOT/.venv/bin/python install --no-user --editable ROOT/.[dev]"
    assert not (clone.root / ".venv/half-made").exists()
    assert clone.set_up("dev") == []


def test_with_neither_ensurepip_nor_pip_the_error_says_so(clone: Clone) -> None:
    clone.python("python3", lacks="ensurepip,pip")
    done = clone.run("setup")
    assert done.returncode == 1
    assert "neither ensurepip nor pip" in done.stderr.splitlines()[-1]
    assert not (clone.root / ".venv").exists()


def test_other_extras_are_refused(clone: Clone) -> None:
    clone.python("python3")
    done = clone.run("setup", "docs")
    assert (done.returncode, clone.asked()) == (2, [])
    assert "usage" in done.stderr


# ------------------------------------------------------------------ the stamp


def test_what_is_there_is_not_installed_again(clone: Clone) -> None:
    clone.python("python3")
    assert clone.set_up("core") == [venv(), install()]
    assert clone.set_up("core") == []
    assert clone.set_up("dev") == [install("[dev]")]
    assert clone.set_up("dev") == []
    assert clone.set_up("core") == []  # dev holds core


def test_a_changed_project_is_installed_again(clone: Clone) -> None:
    clone.python("python3")
    clone.set_up("dev")
    with (clone.root / "pyproject.toml").open("a") as project:
        project.write("# another dependency\n")
    assert clone.set_up("core") == [install("[dev]")]  # what was there stays
    assert clone.set_up("core") == []


def test_an_activated_venv_is_not_taken_for_an_interpreter(clone: Clone) -> None:
    clone.python("python3")
    clone.set_up()
    path = f"{clone.root}/.venv/bin:{clone.environment({})['PATH']}"
    assert clone.set_up(PATH=path) == []
    (clone.root / ".venv/setup-stamp").unlink()
    assert clone.set_up(PATH=path) == [venv(), install()]


@pytest.mark.parametrize(
    "change", ["interpreter", "its version", "place of the clone", "python does not run", "stamp cut short", "no stamp"]
)
def test_the_venv_is_made_anew(clone: Clone, change: str) -> None:
    python = clone.python("python3")
    clone.set_up()
    (clone.root / ".venv/old").touch()
    stamp = clone.root / ".venv/setup-stamp"
    match change:
        case "interpreter":
            python = clone.python("python")
        case "its version":
            clone.python("python3", "3.11.8")
        case "place of the clone":
            clone = replace(clone, root=clone.root.rename(clone.folder / "moved [to] here"))
        case "python does not run":
            (clone.root / ".venv/bin/python").write_text(BROKEN)
        case "stamp cut short":
            stamp.write_text(stamp.read_text().splitlines(keepends=True)[0])
        case _:
            stamp.unlink()
    assert clone.set_up(PYTHON=str(python)) == [venv(python.name), install()]
    assert not (clone.root / ".venv/old").exists()
    assert clone.set_up(PYTHON=str(python)) == []


# ------------------------------------------------------------------ interrupted, and two at once

PIP_FAILS = '{"pip": 7}'


def test_a_failed_install_is_begun_anew(clone: Clone) -> None:
    clone.python("python3")
    assert clone.run("setup", FAKE_EXITS=PIP_FAILS).returncode == 7
    assert clone.asked() == [venv(), install()]
    assert clone.set_up() == [venv(), install()]


def test_the_stamp_is_gone_before_anything_changes(clone: Clone) -> None:
    clone.python("python3")
    clone.set_up()
    project = clone.root / "pyproject.toml"
    before = project.read_bytes()
    project.write_bytes(before + b"# another dependency\n")
    assert clone.run("setup", FAKE_EXITS=PIP_FAILS).returncode == 7
    assert clone.asked() == [install()]
    project.write_bytes(before)  # what .venv was before pip changed it, but is no more
    assert clone.set_up() == [venv(), install()]


@pytest.mark.parametrize("victim", ["pip", "everything"])
def test_an_interrupted_set_up_heals(clone: Clone, victim: str) -> None:
    clone.python("python3")
    with clone.held() as (process, pip):
        if victim == "pip":
            os.kill(pip, signal.SIGKILL)
        else:
            os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() != 0
    assert clone.asked() == [venv(), install()]
    assert (clone.root / ".venv/half-installed").exists()
    assert clone.set_up() == [venv(), install()]
    assert not (clone.root / ".venv/half-installed").exists()
    assert clone.set_up() == []


def wait_until_it_waits(process: subprocess.Popen[bytes]) -> None:
    """Until it is blocked by a lock, or has ended. That one waits makes no event: let others run, look again."""
    while process.poll() is None:
        for waiting in re.findall(r"-> FLOCK +ADVISORY +WRITE (\d+)", Path("/proc/locks").read_text()):
            with suppress(ProcessLookupError):
                if os.getpgid(int(waiting)) == process.pid:
                    return
        os.sched_yield()


@pytest.mark.parametrize(("extras", "more"), [("core", []), ("dev", [install("[dev]")])])
def test_of_two_at_once_one_waits_for_the_other(clone: Clone, extras: str, more: list[str]) -> None:
    clone.python("python3")
    with clone.held() as (first, _), clone.started(extras) as second:
        wait_until_it_waits(second)
        (clone.folder / "go").write_text("")
        assert (first.wait(), second.wait()) == (0, 0)
    assert clone.asked() == [venv(), install(), "pip goes on", *more]


def test_the_next_waits_for_the_pip_of_a_killed_one(clone: Clone) -> None:
    clone.python("python3")
    with clone.held() as (shell, _):
        shell.kill()
        shell.wait()
        with clone.started() as second:
            wait_until_it_waits(second)
            (clone.folder / "go").write_text("")
            assert second.wait() == 0
    assert clone.asked() == [venv(), install(), "pip goes on", venv(), install()]


# ------------------------------------------------------------------ who calls it


def test_run_installs_no_development_tools_and_runs_the_job(clone: Clone) -> None:
    clone.python("python3")
    (clone.root / "scripts/a link").symlink_to(Path("run"))
    (clone.folder / "a link").symlink_to(clone.root / "scripts/a link")
    assert clone.run(str(clone.folder / "a link"), "--once", "a b", FAKE_EXITS='{"examples.books": 3}').returncode == 3
    *_, pip, job = clone.noted()
    assert pip["words"][-1] == f"{clone.root}/."
    assert job["words"][1:] == ["-m", "examples.books", "--once", "a b"]
    assert job["cwd"] == str(clone.root)


def test_test_checks_in_order_and_stops_at_the_first_failure(clone: Clone) -> None:
    clone.python("python3")
    assert clone.run("test", "-k", "a b").returncode == 0
    *_, pip, style, form, types, second, tests = clone.noted()
    assert pip["words"][-1] == f"{clone.root}/.[dev]"
    assert [line["words"][2] for line in (style, form, types, second)] == ["ruff", "ruff", "mypy", "basedpyright"]
    assert tests["words"][1:] == ["-m", "pytest", "-k", "a b"]
    assert tests["cwd"] == str(clone.root)

    assert clone.run("test", FAKE_EXITS='{"mypy": 3}').returncode == 3
    assert [line["words"][2] for line in clone.noted()] == ["ruff", "ruff", "mypy"]


def test_repeat_repeats_until_one_fails(clone: Clone) -> None:
    clone.python("python3")
    clone.set_up("dev")
    for exits, code, runs in (("{}", 0, 3), ('{"pytest": 5}', 5, 1)):
        assert clone.run("repeat", "-n", "3", "tests/a b", FAKE_EXITS=exits).returncode == code
        assert [line["words"][2:] for line in clone.noted()] == [["pytest", "-q", "tests/a b"]] * runs
