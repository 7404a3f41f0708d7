"""No test sleeps to synchronise: it waits for the event itself.

Refused in everything under tests/, also inside strings that are programs: ``time.sleep``, ``asyncio.sleep`` of more
than 0, importing either by name, and ``Event().wait(n)`` on an event that nobody else can set. The step ``wait(n)`` of
a flow is free. A body inside a tested flow that must *take* time, as work does, says so on its line:
``# stands for work``.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MARK = "# stands for work"
MODULES = {"time", "asyncio"}
IN_TEXT = re.compile(r"\b(?:time\.sleep\(|asyncio\.sleep\((?!0\))|from (?:time|asyncio) import .*\bsleep\b)")


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
    for node in nodes:
        match node:
            case ast.ImportFrom(module=module, names=names) if module in MODULES:
                found = any(alias.name == "sleep" for alias in names)
            case ast.Attribute(value=ast.Name(id=name), attr="sleep") if name in imported:
                found = not (imported[name] == "asyncio" and node in yields)
            case ast.Call(func=ast.Attribute(value=ast.Call(func=made), attr="wait"), args=[_, *_]):
                found = ast.unparse(made).endswith("Event")
            case ast.Constant(value=str(text)):
                found = any(IN_TEXT.search(line) and MARK not in line for line in text.splitlines())
            case _:
                continue
        if found and MARK not in lines[node.lineno - 1]:
            yield node.lineno, ast.unparse(node)[:100]


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
    ],
)
def test_what_is_no_sleep_is_left_alone(source: str) -> None:
    assert not list(sleeps(source))
