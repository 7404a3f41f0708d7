"""The inline engine where this process has no fds left."""

import errno
import os
import resource
from collections.abc import Callable, Iterator

import pytest

from caravela import BootError, Supervisor, flow, wait_until
from caravela.supervisor.engines.base import Ends, LaunchFailed, Report, Setting
from caravela.supervisor.engines.inline import InlineEngine

idle = flow("idle", wait_until(lambda s: False), initial_state=lambda: {})


@pytest.fixture(autouse=True)
def soft_limit() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Scarce:
    """``os.eventfd`` with so many left."""

    def __init__(self, left: int) -> None:
        self.left, self._eventfd = left, os.eventfd

    def __call__(self, value: int, flags: int = os.EFD_CLOEXEC) -> int:
        if not self.left:
            raise OSError(errno.EMFILE, "Too many open files")
        self.left -= 1
        return self._eventfd(value, flags)


class Loop:
    def __init__(self) -> None:
        self.reports: list[Report] = []

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        raise AssertionError("nothing was launched")

    def unwatch(self, fd: int, *, close: bool) -> None:
        raise AssertionError("nothing was launched")

    def later(self, seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        raise AssertionError("nothing was launched")

    def report(self, report: Report) -> None:
        self.reports.append(report)


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_launch_without_fds_fails_and_keeps_none(monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    loop, engine, before = Loop(), InlineEngine(), os.listdir("/proc/self/fd")
    engine.open(loop)
    reads, writes = os.pipe()
    monkeypatch.setattr(os, "eventfd", Scarce(left))
    engine.launch(1, Ends(reads, writes, os.memfd_create("page")), Setting((), b""))
    (report,) = loop.reports
    assert isinstance(report, LaunchFailed) and report.key == 1 and "Too many open files" in report.why
    assert os.listdir("/proc/self/fd") == before
    engine.close()


@pytest.mark.parametrize("left", [0, 1])
def test_start_says_so_and_closing_returns(monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    with Supervisor(engine="inline") as supervisor:
        other = supervisor.start(idle)
        with monkeypatch.context() as patched:
            patched.setattr(os, "eventfd", Scarce(left))
            with pytest.raises(BootError, match="Too many open files"):
                supervisor.start(idle)
        assert other.get_state() == {}


def test_the_soft_limit_is_raised_for_a_worker() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Supervisor(engine="inline") as supervisor:
        supervisor.start(idle)
        here = len(os.listdir("/proc/self/fd"))
        for room in range(1, 8):
            resource.setrlimit(resource.RLIMIT_NOFILE, (here + room, hard))
            handle = supervisor.start(idle)
            assert handle.get_state() == {}
            handle.stop()
