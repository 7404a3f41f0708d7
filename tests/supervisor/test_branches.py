"""Workers that are forked from a branch of the zygote, which has imported their flow's module before."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from caravela import Flow, FlowRestarted, Supervisor, debounce, flow, repeat, wait_until
from caravela.errors import BootError
from caravela.supervisor import core, spec
from caravela.supervisor.engines import branches, process, workers

FLOW = """
from caravela import flow, repeat, wait_until

def never(state):
    return False

f = flow("f", repeat(wait_until(never)), initial_state={"n": 0})
"""
Write = Callable[..., str]
IN_THE_BRANCH = "import os, signal, traceback\nif any(frame.name == 'preload' for frame in traceback.extract_stack()): "


def unnamed() -> Flow:
    """One that travels whole."""
    return flow("unnamed", repeat(wait_until(lambda s: False), debounce(1)), initial_state={"n": 0})


def here(state: dict[str, object]) -> dict[str, object]:
    """Sent to workers, where it says what they are."""
    import os
    import sys

    return {"parent": os.getppid(), "loaded": sorted(name for name in sys.modules if name.startswith("branched_"))}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a module with a flow ``f`` and something before it; returns the flow's address."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, before: str = "", folder: Path = tmp_path) -> str:
        folder.mkdir(exist_ok=True)
        (folder / f"branched_{name}.py").write_text(before + FLOW)
        return f"branched_{name}:f"

    return write


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine too, what waits for a branch gets it."""
    monkeypatch.setattr(branches, "AWAITED", 15.0)


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    with Supervisor() as supervisor:
        yield supervisor


def parent(pid: int | None) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


def start(supervisor: Supervisor, address: str) -> int:
    """Starts one and returns the parent of its worker."""
    return parent(supervisor.start(address).pid)


def engine_of(supervisor: Supervisor) -> process.ProcessEngine:
    household = supervisor._household
    assert household and isinstance(household.engine, process.ProcessEngine)
    return household.engine


def root_of(supervisor: Supervisor) -> int:
    zygote = engine_of(supervisor)._zygote
    assert zygote is not None
    with open(f"/proc/self/fdinfo/{zygote.death}") as info:
        return next(int(line.split()[1]) for line in info if line.startswith("Pid:"))


def gone(*pidfds: int) -> bool:
    """Waits for all of them, and closes; pytest's timeout is the bound."""
    for fd in pidfds:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll()
        os.close(fd)
    return True


def test_the_first_comes_from_the_root_and_the_next_from_a_branch_of_it(supervisor: Supervisor, write: Write) -> None:
    address = write("plain")
    root = start(supervisor, address)
    assert root == root_of(supervisor)
    handles = [supervisor.start(address) for _ in range(3)]
    (branch,) = {parent(handle.pid) for handle in handles}
    assert branch != root and parent(branch) == root
    handles[0].update(lambda s: s | {"n": 7})
    assert [handle.get_state()["n"] for handle in handles] == [7, 0, 0]


def test_a_flow_object_that_goes_by_name_uses_its_module(supervisor: Supervisor, write: Write) -> None:
    module, _, _ = write("object").partition(":")
    found = __import__(module).f
    assert parent(supervisor.start(found).pid) == root_of(supervisor)
    assert parent(supervisor.start(found).pid) != root_of(supervisor)


def test_a_flow_without_a_name_is_always_the_roots(supervisor: Supervisor) -> None:
    assert {parent(supervisor.start(unnamed()).pid) for _ in range(3)} == {root_of(supervisor)}


def test_what_is_imported_once_is_fast_from_then_on(supervisor: Supervisor, write: Write) -> None:
    busy = "import time\nend = time.monotonic() + 0.2\nwhile time.monotonic() < end: pass\n"  # stands for work
    address = write("slow", busy)
    supervisor.start(address)
    start(supervisor, address)  # may wait for the branch
    times = []
    for _ in range(5):
        before = time.monotonic()
        supervisor.start(address)
        times.append(time.monotonic() - before)
    assert min(times) < 0.1


def test_many_at_once_wait_for_one_import(supervisor: Supervisor, write: Write, tmp_path: Path) -> None:
    counted = f"with open({str(tmp_path / 'imports')!r}, 'a') as file: file.write('.')\n"
    address = write("counted", counted)
    handles = [supervisor.start(address, wait=False) for _ in range(40)]
    for handle in handles:
        handle.get_state()
    assert (tmp_path / "imports").read_text() == ".."  # the first start's, and the branch's


def test_launches_do_not_wait_long_for_a_branch(
    supervisor: Supervisor, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(branches, "AWAITED", 0.05)
    address = write("hanging", f"{IN_THE_BRANCH}signal.pause()\n")
    assert {start(supervisor, address) for _ in range(3)} == {root_of(supervisor)}


# ------------------------------------------------------------------ what its workers are

RESEEDED = """
import os, sys, types
for name in ("numpy.random", "torch"):
    fake = sys.modules[name] = types.ModuleType(name)
    fake.calls = []
    fake.seed = lambda calls=fake.calls: calls.append(os.getpid())
"""


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, the second start waits for the branch."""
    monkeypatch.setattr(branches, "AWAITED", 15.0)


def reseeded(state: dict[str, object]) -> dict[str, object]:
    """Says how often each of them was seeded here."""
    import os
    import sys

    calls = [sys.modules[name].calls for name in ("numpy.random", "torch")]
    return {"parent": os.getppid(), "calls": [here.count(os.getpid()) for here in calls], "all": sum(map(len, calls))}


@pytest.mark.usefixtures("patience")
def test_what_does_not_reseed_itself_after_a_fork_is_reseeded(supervisor: Supervisor, write: Write) -> None:
    address = write("reseeded", RESEEDED)
    first = supervisor.start(address).update(reseeded)
    assert first == {"parent": root_of(supervisor), "calls": [0, 0], "all": 0}  # its import came later
    for _ in range(3):
        found = supervisor.start(address).update(reseeded)
        assert found.pop("parent") != root_of(supervisor)
        assert found == {"calls": [1, 1], "all": 2}


WAKING = """
import os, signal
os.set_blocking(0, False)  # /dev/null
signal.set_wakeup_fd(0, warn_on_full_buffer=False)
"""


def woken(state: dict[str, object]) -> dict[str, object]:
    import os
    import signal

    return {"parent": os.getppid(), "fd": signal.set_wakeup_fd(-1)}


@pytest.mark.usefixtures("patience")
def test_a_wakeup_fd_of_the_branch_is_none_of_its_workers(supervisor: Supervisor, write: Write) -> None:
    address = write("waking", WAKING)
    assert supervisor.start(address).update(woken) == {"parent": root_of(supervisor), "fd": 0}  # its own import's
    for _ in range(3):
        found = supervisor.start(address).update(woken)
        assert found.pop("parent") != root_of(supervisor)
        assert found == {"fd": -1}


def collected(state: dict[str, object]) -> dict[str, object]:
    """Whether a collection here would look at, and so copy, what the module made."""
    import gc
    import os

    made = __import__("branched_frozen").MADE
    looks = any(one is made for one in gc.get_objects())
    return {"parent": os.getppid(), "frozen": gc.get_freeze_count() > 1_000, "looks": looks}


@pytest.mark.usefixtures("patience")
def test_what_the_branch_imported_is_out_of_reach_of_a_workers_collections(
    supervisor: Supervisor, write: Write
) -> None:
    address = write("frozen", "MADE = [[]]\n")
    first = supervisor.start(address).update(collected)
    assert first == {"parent": root_of(supervisor), "frozen": True, "looks": True}  # its own import
    for _ in range(3):
        found = supervisor.start(address).update(collected)
        assert found.pop("parent") != root_of(supervisor)
        assert found == {"frozen": True, "looks": False}


# ------------------------------------------------------------------ what cannot be shared


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("threaded", "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"),
        ("opening", "file = open(__file__)\n"),
        ("handling", "import signal\nsignal.signal(signal.SIGUSR1, lambda *_: None)\n"),
        ("spawning", "import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1)\n"),
        ("limiting", "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"),
        ("waking", "import signal\nsignal.setitimer(signal.ITIMER_REAL, 3600)\n"),
        ("profiling", "import signal\nsignal.setitimer(signal.ITIMER_PROF, 3600, 3600)\n"),
        ("leaving", f"{IN_THE_BRANCH}os._exit(3)\n"),
        ("breaking", f"{IN_THE_BRANCH}os.abort()\n"),
    ],
)
def test_a_module_that_forks_cannot_share_is_each_workers_own(
    supervisor: Supervisor, write: Write, name: str, before: str
) -> None:
    address = write(name, before)
    # One that is killed by a signal gets a second branch, asked for by the third start at the latest.
    assert {start(supervisor, address) for _ in range(4)} == {root_of(supervisor)}
    assert list(engine_of(supervisor)._branches) == []


def test_an_import_that_ends_its_process_is_a_boot_error_as_ever(supervisor: Supervisor, write: Write) -> None:
    for name, before in (("raising", "1 / 0\n"), ("exiting", "raise SystemExit(3)\n")):
        address = write(name, before)
        for _ in range(3):
            with pytest.raises(BootError, match=r"ZeroDivisionError|SystemExit"):
                supervisor.start(address)


@pytest.mark.parametrize("restart", ["temporary", "transient", "permanent"])
def test_an_import_that_raises_is_made_once_a_start(write: Write, tmp_path: Path, restart: spec.Restart) -> None:
    imports = tmp_path / "imports"
    address = write("counting", f"with open({str(imports)!r}, 'a') as file: file.write('.')\n1 / 0\n")
    with Supervisor() as supervisor:
        with pytest.raises(BootError) as failed:
            supervisor.start(address, restart=restart)
        assert str(failed.value).count("Traceback") == str(failed.value).count("1 / 0") == 1
        assert supervisor.count_children() == 0
        for _ in range(3):
            with pytest.raises(BootError):
                supervisor.start(address, restart=restart)
    assert imports.read_text() == "...."


def test_the_branch_imports_after_the_first_worker_not_beside_it(supervisor: Supervisor, write: Write) -> None:
    """As a module must that binds a port or locks a file meanwhile."""
    locks = (
        "import fcntl, os\n"
        "file = os.open(__file__, os.O_RDONLY)\n"
        "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "for _ in range(1000): os.sched_yield()\n"
        "os.close(file)\n"
    )
    for number in range(10):
        supervisor.start(write(f"locks{number}", locks))


def test_a_branch_killed_while_it_imports_is_tried_once_more(
    supervisor: Supervisor, write: Write, tmp_path: Path
) -> None:
    tried = str(tmp_path / "tried")
    dies = f"    if not os.path.exists({tried!r}): open({tried!r}, 'x').close(); os.kill(os.getpid(), signal.SIGKILL)\n"
    address = write("killed_once", f"{IN_THE_BRANCH}\n{dies}")
    parents = [start(supervisor, address) for _ in range(5)]
    assert parents[0] == root_of(supervisor) != parents[4]


def test_a_branch_that_is_always_killed_is_tried_twice(supervisor: Supervisor, write: Write, tmp_path: Path) -> None:
    counted = f"    with open({str(tmp_path / 'tries')!r}, 'a') as file: file.write('.')\n"
    dies = f"{counted}    os.kill(os.getpid(), signal.SIGKILL)\n"
    address = write("killed_always", f"{IN_THE_BRANCH}\n{dies}")
    assert {start(supervisor, address) for _ in range(6)} == {root_of(supervisor)}
    assert (tmp_path / "tries").read_text() == ".."


def test_the_surroundings_are_those_of_the_start(
    supervisor: Supervisor, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = "import os\nREAD = os.environ.get('TENANT')\n"
    address = write("reads", reads)
    told = []
    for tenant in "aabba":
        monkeypatch.setenv("TENANT", tenant)
        handle = supervisor.start(address)
        told.append(handle.update(lambda s: {"read": __import__("branched_reads").READ})["read"])
    assert told == list("aabba")


def test_another_path_is_another_module(
    supervisor: Supervisor, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = write("twin", "WHICH = 1\n")
    write("twin", "WHICH = 2\n", tmp_path / "other")
    which = lambda s: {"which": __import__("branched_twin").WHICH}  # noqa: E731
    assert [supervisor.start(address).update(which)["which"] for _ in range(2)] == [1, 1]
    monkeypatch.syspath_prepend(str(tmp_path / "other"))
    assert [supervisor.start(address).update(which)["which"] for _ in range(2)] == [2, 2]


def test_idle_branches_are_few(supervisor: Supervisor, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "MOST", 2)
    kept = write("kept")
    start(supervisor, kept)
    of_kept = start(supervisor, kept)
    for number in range(4):
        address = write(f"other{number}")
        for _ in range(2):
            supervisor.start(address).stop()
    assert len(list(engine_of(supervisor)._branches)) <= 2
    assert start(supervisor, kept) == of_kept  # it has a worker


# ------------------------------------------------------------------ preload=


def test_preloaded_modules_serve_flows_without_a_name(write: Write) -> None:
    write("early")
    with Supervisor(preload=["branched_early"]) as supervisor:
        handle = supervisor.start(unnamed())
        facts = handle.update(here)
        assert facts["loaded"] == ["branched_early"]
        assert facts["parent"] != root_of(supervisor)


def test_preloaded_modules_are_in_every_branch(write: Write) -> None:
    write("common")
    address = write("own")
    with Supervisor(preload=("branched_common",)) as supervisor:
        supervisor.start(address)
        assert supervisor.start(address).update(here)["loaded"] == ["branched_common", "branched_own"]


def test_preload_false_means_no_branches(write: Write) -> None:
    address = write("never")
    with Supervisor(preload=False) as supervisor:
        assert {start(supervisor, address) for _ in range(3)} == {root_of(supervisor)}


@pytest.mark.parametrize("wrong", [None, "json", True, (1,), {"json"}])
def test_what_preload_takes(wrong: object) -> None:
    with pytest.raises(TypeError, match="preload="):
        spec.modules(wrong)
    with pytest.raises(ValueError, match="not the name of a module"):
        spec.modules(("a-b",))
    assert spec.modules(["a.b"]) == ("a.b",)


def test_a_preload_that_cannot_be_is_told(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    with Supervisor(preload=("branched_nowhere",)) as supervisor:
        supervisor.start(unnamed())  # waits for the branch
        assert parent(supervisor.start(unnamed()).pid) == root_of(supervisor)
    assert "ModuleNotFoundError: No module named 'branched_nowhere'" in caplog.text


# ------------------------------------------------------------------ dying


def test_a_branch_killed_alone_restarts_its_flows_from_a_new_one(write: Write) -> None:
    address = write("branch_killed")
    with Supervisor(max_restarts=0) as supervisor:  # a restart that is charged would be the end
        bystander = supervisor.start(address)
        handles = [supervisor.start(address) for _ in range(3)]
        branch = parent(handles[0].pid)
        subscriptions = [handle.subscribe(kinds=(FlowRestarted,)) for handle in handles]
        os.kill(branch, signal.SIGKILL)
        for subscription in subscriptions:
            restarted = subscription.get()
            assert isinstance(restarted, FlowRestarted) and restarted.cause and restarted.cause.kind == "zygote_lost"
        assert bystander.incarnation == 1
        again = start(supervisor, address)
        assert again != branch and parent(again) == root_of(supervisor)


def test_a_killed_root_takes_branches_and_workers_and_the_flows_restart(write: Write) -> None:
    address = write("root_killed")
    with Supervisor(max_restarts=0) as supervisor:
        handles = [supervisor.start(address) for _ in range(3)]
        subscriptions = [handle.subscribe(kinds=(FlowRestarted,)) for handle in handles]
        root, branch = root_of(supervisor), parent(handles[2].pid)
        ends = [os.pidfd_open(pid) for pid in (branch, *(handle.pid or 0 for handle in handles))]
        os.kill(root, signal.SIGKILL)
        for subscription in subscriptions:
            restarted = subscription.get()
            assert isinstance(restarted, FlowRestarted) and restarted.cause and restarted.cause.kind == "zygote_lost"
        assert gone(*ends)
        start(supervisor, address)
        assert parent(start(supervisor, address)) == root_of(supervisor) != root


def test_a_worker_of_a_branch_dies_and_restarts_as_any_other(supervisor: Supervisor, write: Write) -> None:
    address = write("worker_killed")
    start(supervisor, address)
    handle = supervisor.start(address)
    branch, end = parent(handle.pid), handle.subscribe(kinds=(FlowRestarted,))
    assert handle.pid is not None
    os.kill(handle.pid, signal.SIGSEGV)
    restarted = end.get()
    assert isinstance(restarted, FlowRestarted) and str(restarted.cause).startswith("SIGSEGV")
    assert parent(handle.pid) == branch


def test_closing_ends_a_branch_that_still_imports(write: Write, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    waits = (
        f"import os\nif os.path.exists({str(tmp_path / 'on')!r}):\n    with open({str(tmp_path / 'fifo')!r}) as file:"
    )
    write("waits", f"{waits} file.read()\n")
    (tmp_path / "on").write_text("")
    with Supervisor(preload=("branched_waits",)):
        writes = os.open(tmp_path / "fifo", os.O_WRONLY)  # returns once the branch is at its import
        before = time.monotonic()
    assert time.monotonic() - before < process.GONE_WITHIN
    os.close(writes)


def test_a_stopped_branch_does_not_hold_up_the_closing(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "CLOSED_WITHIN", 0.2)
    monkeypatch.setattr(workers, "STATUS_WITHIN", 0.2)
    address = write("stopped")
    with Supervisor() as supervisor:
        start(supervisor, address)
        handle = supervisor.start(address)
        branch = parent(handle.pid)
        ends = os.pidfd_open(branch), os.pidfd_open(handle.pid or 0)
        os.kill(branch, signal.SIGSTOP)
        handle.stop()
    assert gone(*ends)


def test_a_branch_that_cannot_fork_is_a_boot_error_and_then_none(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ANSWERED_WITHIN", 0.1)
    monkeypatch.setattr(core, "LAUNCH", 0.1)
    blocks = f"{IN_THE_BRANCH}os.register_at_fork(before=signal.pause)\n"
    address = write("unable", blocks)
    with Supervisor(boot_timeout=1, max_restarts=0) as supervisor:
        first = supervisor.start(address)
        with pytest.raises(BootError, match="not ready within"):
            supervisor.start(address)
        assert start(supervisor, address) == root_of(supervisor)
        assert first.incarnation == 1


HOST = """
import sys
sys.path.insert(0, {path!r})
from caravela import Supervisor
def parent(pid):
    with open(f"/proc/{{pid}}/stat") as file: return int(file.read().rpartition(")")[2].split()[1])
supervisor = Supervisor().open()
pids = [supervisor.start({address!r}).pid for _ in range(3)]
print(*pids, *set(map(parent, pids)), flush=True)
sys.stdin.read()
"""


def test_nothing_is_left_a_second_after_the_host_was_killed(write: Write, tmp_path: Path) -> None:
    code = HOST.format(path=str(tmp_path), address=write("host_killed"))
    host = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert host.stdin and host.stdout
    pids = list(map(int, host.stdout.readline().split()))
    assert len(pids) == 5  # three workers, the root, the branch
    ends = list(map(os.pidfd_open, pids))
    before = time.monotonic()
    host.kill()
    assert gone(*ends)
    assert time.monotonic() - before < 1.0
    host.wait()
    host.stdin.close()
    host.stdout.close()


def test_a_forked_child_lets_go_of_the_branches(supervisor: Supervisor, write: Write) -> None:
    address = write("forked")
    start(supervisor, address)
    handle = supervisor.start(address)
    branch = os.pidfd_open(parent(handle.pid))
    asks, tells = os.pipe()
    if (child := os.fork()) == 0:
        os.close(tells)
        os.read(asks, 1)
        os._exit(0)
    os.close(asks)
    supervisor.close()
    assert gone(branch)  # the child does not keep it
    os.close(tells)
    os.waitpid(child, 0)
