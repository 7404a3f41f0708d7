"""The fixture that guards all other tests, in a pytest of its own: it finds what is left, and only that."""

import os
import re
import subprocess
import sys
from pathlib import Path

LEAKY = """
import os, signal, subprocess, sys, threading

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
    threading.Timer(0.05, lambda: (os.close(writes), os.waitpid(pid, 0))).start()

def test_clean_after_all_that():
    pass
"""


def test_what_a_test_leaves_behind_fails_it(tmp_path: Path) -> None:
    conftest = Path(__file__).with_name("conftest.py").read_text()
    (tmp_path / "conftest.py").write_text(conftest.replace("GRACE = 1.0", "GRACE = 0.2"))
    (tmp_path / "test_leaky.py").write_text(LEAKY)
    # Another environment than ours, or the forks of the inner pytest would look like forks of the outer one.
    out = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "-rE", str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"INNER": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    ).stdout
    assert re.findall(r"^ERROR test_leaky\.py::(\w+)", out, re.MULTILINE) == [
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
