"""No test sleeps to synchronise: it waits for the event itself.

Refused in everything under tests/, also inside strings that are programs:

- ``time.sleep``, ``asyncio.sleep`` of more than 0, importing either by name;
- ``threading.Timer``: a thread that sleeps first;
- waiting for a time on what was made for it, so that nothing can come: ``Event().wait(n)``, ``select.poll().poll(n)``,
  a poll object with nothing registered, ``select.select([], [], [], n)``;
- a loop that only looks at the clock: ``while monotonic() < end: pass``. One that looks for something else is free.

The step ``wait(n)`` of a flow is free. Code of a flow under test that must *take* time, as work does, says so on its
line: ``# stands for work``.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MARK = "# stands for work"
SLEEPERS = {("time", "sleep"), ("asyncio", "sleep"), ("threading", "Timer")}
MODULES = {"time", "asyncio"}
FRESH = {"Event", "Condition", "Queue", "SimpleQueue", "poll", "epoll"}
CLOCKS = {
    *("monotonic", "perf_counter", "process_time", "thread_time", "time"),
    *("monotonic_ns", "perf_counter_ns", "process_time_ns", "thread_time_ns", "time_ns"),
}
IDLE = {"sched_yield"}
"""Calls that do not make a loop over the clock any better."""
IN_TEXT = re.compile(
    r"\b(?:time\.sleep\(|asyncio\.sleep\((?!0\))|from (?:time|asyncio) import .*\bsleep\b"
    r"|Timer\(|e?poll\(\)\.poll\((?!0?\))|select\(\[\], \[\], \[\], |while .*\b(?:monotonic|perf_counter)(?:_ns)?\()"
)


def sleeps(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each sleep in a program."""
    tree = ast.parse(source)
    lines = source.splitlines()
    nodes = list(ast.walk(tree))
    imported = {
        alias.asname or alias.name: alias.name
        for node in nodes
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name in MODULES
    }
    yields = {node.func for node in nodes if isinstance(node, ast.Call) and [*map(ast.unparse, node.args)] == ["0"]}
    deaf = deaf_polls(nodes)
    for node in nodes:
        match node:
            case ast.ImportFrom(module=module, names=names):
                found = any((module, alias.name) in SLEEPERS for alias in names)
            case ast.Attribute(value=ast.Name(id=name), attr="sleep") if name in imported:
                found = not (imported[name] == "asyncio" and node in yields)
            case ast.Call():
                found = called(node) == "Timer" or is_for_nothing(node) or node in deaf
            case ast.While():
                found = only_looks_at_the_clock(node)
            case ast.Constant(value=str(text)):
                found = any(IN_TEXT.search(line) and MARK not in line for line in text.splitlines())
            case _:
                continue
        if found and MARK not in lines[node.lineno - 1]:
            yield node.lineno, ast.unparse(node)[:100]


def called(node: ast.AST) -> str:
    """The last word of what is called: ``poll`` for ``select.poll()``."""
    return ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""


def takes_time(call: ast.Call) -> bool:
    """Whether it is told how long to wait. Not at all is no pause, and for ever is a wait for the test's time-out."""
    return any(ast.unparse(given) not in ("0", "None") for given in (*call.args, *(one.value for one in call.keywords)))


def is_for_nothing(node: ast.Call) -> bool:
    """Waits on what nobody else knows."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Call() as made, attr="wait" | "get" | "poll")):
            return called(made) in FRESH and takes_time(node)
        case ast.Call(args=[*three, _]) if called(node) == "select":
            return [*map(ast.unparse, three)] == ["[]"] * 3
    return False


def deaf_polls(nodes: list[ast.AST]) -> set[ast.AST]:
    """The calls of ``poll`` with a time on an object that its function has made and registered nothing with."""
    found: set[ast.AST] = set()
    for scope in nodes:
        if not isinstance(scope, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        inside = list(ast.walk(scope))
        calls = [node for node in inside if isinstance(node, ast.Call)]
        deaf = {
            target.id
            for node in inside
            if isinstance(node, ast.Assign) and called(node.value) in ("poll", "epoll")
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for call in calls:  # whoever else gets it may register something
            deaf -= {given.id for given in call.args if isinstance(given, ast.Name)}
            if called(call) == "register" and isinstance(call.func, ast.Attribute):
                deaf.discard(ast.unparse(call.func.value))
        found |= {
            call
            for call in calls
            if isinstance(call.func, ast.Attribute) and call.func.attr == "poll" and takes_time(call)
            if ast.unparse(call.func.value) in deaf
        }
    return found


def only_looks_at_the_clock(loop: ast.While) -> bool:
    calls = {called(node) for node in ast.walk(loop) if isinstance(node, ast.Call)}
    return bool(calls & CLOCKS) and calls <= CLOCKS | IDLE


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_does_not_sleep(path: Path) -> None:
    if path == Path(__file__):
        return
    found = [f"{path}:{line}: {what}" for line, what in sleeps(path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.sleep(1)",
        "import time as t\nt.sleep(0)",
        "import time\nnap = time.sleep",
        "from time import sleep",
        "from asyncio import gather, sleep",
        "import asyncio\nasync def f(): await asyncio.sleep(0.1)",
        "import threading\nthreading.Event().wait(1)",
        "from threading import Event\nEvent().wait(timeout)",
        "script = '''\nimport time\ntime.sleep(1)\n'''",
        "script = 'await asyncio.sleep(0.5)'",
        "import threading\nthreading.Event().wait(timeout=1)",
        "import queue\nqueue.SimpleQueue().get(timeout=1)",
        "import select\nselect.poll().poll(25)",
        "from select import epoll\nepoll().poll(0.1)",
        "import select\ndef f():\n    poll = select.poll()\n    poll.poll(5)",
        "import select\ndef f():\n    p = select.poll()\n    p.poll(5)\ndef g(p, fd): p.register(fd)",
        "import select\nselect.select([], [], [], 0.1)",
        "from select import select\nselect([], [], [], delay)",
        "import threading\nthreading.Timer(0.05, f).start()",
        "from threading import Timer as Later",
        "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass",
        "from time import perf_counter\nwhile True:\n    if perf_counter() > end:\n        break",
        "import os, time\nwhile time.monotonic_ns() < end: os.sched_yield()",
        "script = 'select.poll().poll(25)'",
        "script = 'while time.monotonic() < end: pass'",
        "script = '''\nimport threading\nthreading.Timer(1, f)\n'''",
    ],
)
def test_a_sleep_is_found(source: str) -> None:
    assert list(sleeps(source))


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio\nasync def f(): await asyncio.sleep(0)",
        "import time\ntime.monotonic()",
        "import time\ntime.sleep(1)  # stands for work",
        "script = '''\nimport time\ntime.sleep(1)  # stands for work\n'''",
        "from caravela import wait\nwait(100)",
        "done.wait(1)",
        "import threading\nthreading.Event().wait()",
        "'the words asyncio and sleep'",
        "import queue\nqueue.SimpleQueue().get()",
        "import select\nselect.poll().poll(0)",
        "import select\npoll = select.poll()\npoll.register(fd)\npoll.poll(1000)",
        "import select\npoll = select.poll()\nlisten(poll)\npoll.poll(1000)",
        "import select\nselect.select([fd], [], [], 1)",
        "process.poll()",
        "import time\nwhile time.monotonic() < end: pass  # stands for work",
        "import time\nwhile not look() and time.monotonic() < end: pass",
        "import time\nwhile time.monotonic() < end: handle.signal(plus)",
        "while not done: pass",
    ],
)
def test_what_is_no_sleep_is_left_alone(source: str) -> None:
    assert not list(sleeps(source))
