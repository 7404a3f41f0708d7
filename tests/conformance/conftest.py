"""One suite, every engine: what holds for a process must hold inline, where nothing but the isolation is missing."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from caravela import Supervisor
from caravela.supervisor.subscribers import Subscription

HERE = str(Path(__file__).parent)

# The helpers are loaded here, by their plain names; the test modules themselves cannot be imported by those.
sys.path.insert(0, HERE)
try:
    gates = importlib.import_module("gates")
    flows_under_test = importlib.import_module("flows_under_test")
    importlib.import_module("listening")
finally:
    sys.path.remove(HERE)


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker imports ``flows_under_test``. It cannot import the test modules, also where pytest was started by
    ``python -m``, which puts the root on the path: their functions travel to it by a mirror."""
    root = {"", str(Path(HERE).parents[1])}
    monkeypatch.setattr(sys, "path", [HERE, *(entry for entry in sys.path if entry not in root)])


@pytest.fixture(params=["inline", "process"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def supervise(engine: str) -> Iterator[Callable[..., Supervisor]]:
    """Makes supervisors that run; they are closed after the test."""
    with ExitStack() as opened:

        def supervise(**options: Any) -> Supervisor:
            return opened.enter_context(Supervisor(**{"engine": engine, **options}))

        yield supervise


@pytest.fixture(scope="module", autouse=True)
def processes() -> Iterator[Supervisor]:
    """One for all tests of a module that need none of their own: what it is made of is there before any of them, so
    it must not branch out during one. Those that ``supervise`` makes do."""
    with closing(Supervisor(preload=False).open(private=True)) as shared:
        shared.start(flows_under_test.idle).stop()
        yield shared


@pytest.fixture
def supervisor(engine: str, supervise: Callable[..., Supervisor], processes: Supervisor) -> Iterator[Supervisor]:
    if engine == "inline":
        yield supervise()
        return
    yield processes
    for child in processes.children():
        child.stop()
    assert processes._household
    for sink in processes._household.sinks:
        assert isinstance(sink, Subscription)
        sink.close()


@pytest.fixture
def gate(supervisor: object, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes gates by name; those that a test leaves closed are opened before its supervisors close."""
    made: dict[str, Any] = {}

    def gate(name: str = "gate") -> Any:
        if name not in made:
            made[name] = gates.Keeper.of(str(tmp_path / name))
        return made[name]

    yield gate
    for keeper in made.values():
        keeper.throw_open()
