"""The fixtures that guard all other tests, in a pytest of its own: they find what is left, and only that."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

LEAKY = """
import gc, os, signal, subprocess, sys, threading

KEPT = []
CHILD = [sys.executable, "-c", "import signal; signal.pause()"]

def test_clean():
    reads, writes = os.pipe()
    thread = threading.Thread(target=os.read, args=(reads, 1))
    thread.start()
    os.write(writes, b"x")
    thread.join()
    os.close(reads); os.close(writes)
    subprocess.run([sys.executable, "-c", ""], check=True)

def test_child():
    KEPT.append(subprocess.Popen(CHILD, start_new_session=True))

def test_zombie():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

def test_orphan_that_was_execed():
    middle = "import os, subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True); os._exit(0)"
    subprocess.run([sys.executable, "-c", middle, *CHILD], check=True)

def test_orphan_that_was_forked():
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            os.setsid()
            signal.pause()
        os._exit(0)
    os.waitpid(middle, 0)

def test_descriptor():
    os.open("/dev/null", os.O_RDONLY)

def test_closed_descriptor():
    os.close(max(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.lexists("/proc/self/fd/" + fd)))

def test_thread():
    threading.Thread(target=signal.sigwait, args=([signal.SIGUSR1],), daemon=True, name="forgotten").start()

def test_slow_but_on_its_way():
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writes)
        os.read(reads, 1)
        os._exit(0)
    os.close(reads)
    threading.Thread(target=os.waitpid, args=(pid, 0)).start()

    def goes_when_it_is_found(phase, info):  # the check collects garbage after its first look
        gc.callbacks.remove(goes_when_it_is_found)
        gc.enable()
        os.close(writes)

    gc.disable()
    gc.callbacks.append(goes_when_it_is_found)

def test_clean_after_all_that():
    pass
"""


WIDER = """
import os, subprocess, sys
import pytest

KEPT = []
CHILD = [sys.executable, "-c", "import signal; signal.pause()"]

@pytest.fixture(scope="the scope")
def tidy():
    reads, writes = os.pipe()
    child = subprocess.Popen(CHILD, start_new_session=True)
    yield
    child.kill()
    child.wait()
    os.close(reads); os.close(writes)

@pytest.fixture(scope="the scope")
def leaky():
    KEPT.append(subprocess.Popen(CHILD, start_new_session=True))
    os.open("/dev/null", os.O_RDONLY)

def test_first(tidy, leaky):
    pass

def test_last(tidy, leaky):
    pass
"""


BESIDE = """
from pathlib import Path

def test_ends_while_another_session_runs():
    me = "second" if Path("first").exists() else "first"
    Path(me).touch()
    Path("began").write_text(me)
    Path(f"go {me}").read_text()
"""


def run_inside(folder: Path, program: str, *args: str) -> "subprocess.CompletedProcess[str]":
    with inside(folder, program, *args) as running:
        out, _ = running.communicate()
    return subprocess.CompletedProcess(running.args, running.returncode, out)


def inside(folder: Path, program: str, *args: str) -> "subprocess.Popen[str]":
    conftest = Path(__file__).with_name("conftest.py").read_text()
    (folder / "conftest.py").write_text(conftest.replace("GRACE = 1.0", "GRACE = 0.2"))
    (folder / "test_leaky.py").write_text(program)
    options = ["-q", "-p", "no:cacheprovider", "--tb=short", "-rE", "-o", "faulthandler_timeout=18", *args]
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, str(folder)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def blamed(out: str) -> list[str]:
    return re.findall(r"^ERROR test_leaky\.py::(\w+)", out, re.MULTILINE)


def test_what_a_test_leaves_behind_fails_it(tmp_path: Path) -> None:
    out = run_inside(tmp_path, LEAKY).stdout
    assert blamed(out) == [
        "test_child",
        "test_zombie",
        "test_orphan_that_was_execed",
        "test_orphan_that_was_forked",
        "test_descriptor",
        "test_closed_descriptor",
        "test_thread",
    ], out
    assert "thread" in out
    assert ": forgotten" in out
    assert "(a zombie)" in out
    assert ": /dev/null" in out


@pytest.mark.parametrize("scope", ["module", "package", "session"])
def test_what_a_wider_fixture_leaves_behind_fails_the_run(tmp_path: Path, scope: str) -> None:
    done = run_inside(tmp_path, WIDER.replace("the scope", scope))
    assert (done.returncode, blamed(done.stdout)) == (1, ["test_last"]), done.stdout
    _, _, report = done.stdout.partition("left behind by fixtures wider than a test:\n")
    assert re.match(r"  process \d+ .* signal\.pause\(\)\n  descriptor \d+: /dev/null\n(?!  )", report), done.stdout


@pytest.mark.parametrize(("body", "code"), [("pass", 0), ("assert False", 1)])
def test_a_tidy_run_is_not_blamed(tmp_path: Path, body: str, code: int) -> None:
    program = WIDER.replace("the scope", "module").replace(", leaky", "").replace("pass", body)
    done = run_inside(tmp_path, program, "-x")  # with it, fixtures end outside of any test
    assert done.returncode == code, done.stdout
    assert "left behind" not in done.stdout


def test_another_session_of_the_same_words_is_left_alone(tmp_path: Path) -> None:
    for name in ("began", "go first", "go second"):
        os.mkfifo(tmp_path / name)
    with inside(tmp_path, BESIDE) as first:
        assert (tmp_path / "began").read_text() == "first"  # it waits in its test, with "go first"
        with inside(tmp_path, BESIDE) as second:
            assert (tmp_path / "began").read_text() == "second"
            (tmp_path / "go first").write_text("")
            out, _ = first.communicate()
            assert first.returncode == 0, out
            assert second.poll() is None
            (tmp_path / "go second").write_text("")
            out, _ = second.communicate()
    assert second.returncode == 0, out


ENDING = """
import threading
from conftest import thread_ids

def test_no_thread_is_missed_while_others_end():
    for _ in range(300):
        gates = [threading.Lock() for _ in range(5)]
        for gate in gates:
            gate.acquire()
        threads = [threading.Thread(target=gate.acquire, daemon=True) for gate in gates]
        for thread in threads:
            thread.start()
        living = threads[-1]
        for gate in gates[:-1]:
            gate.release()
        for _ in range(12):
            assert living.native_id in thread_ids()
        gates[-1].release()
        for thread in threads:
            thread.join()
"""


def test_no_thread_is_missed_while_others_end(tmp_path: Path) -> None:
    done = run_inside(tmp_path, ENDING)
    assert done.returncode == 0, done.stdout
