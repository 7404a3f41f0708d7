"""A flow for people: as a tree of text, and as a Mermaid flowchart."""

from os.path import basename
from types import FunctionType
from typing import Any, Final

from .flat import Branching, Flat, arguments, spell
from .plan import Node, Plan
from .steps import Debounce, Each, Parallel, Race, Repeat, SetState, Wait, WaitUntil

INDENTED: Final = 40
"""Levels that a tree shows by indentation; deeper ones show their number."""
NESTED: Final = 100
"""Levels of subgraphs; holders below them are left out, their steps are not."""
_DURATIONS: Final = {"ms", "timeout", "max_wait", "base_delay", "max_delay"}
_ESCAPED: Final = str.maketrans(
    {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "&": "#amp;", "`": "#96;", ":": "#58;", "%": "#37;"}
)


def tree(name: str, plan: Plan) -> str:
    """One line a step. Below level 40 the lines stop moving to the right and begin with their level, ``[41]``."""
    lines = [f"flow {_plain(name)}"]
    bars = [""]  # by level: what stands before the steps of it
    for node in plan.nodes[1:]:
        level = plan.depth(node.id)
        text = _label(node.step)
        if level > INDENTED:
            lines.append(f"{bars[INDENTED]}[{level}] {text}")
            continue
        last = node.index == len(plan.nodes[node.parent].children) - 1
        del bars[level:]
        before = bars[level - 1]
        lines.append(f"{before}{'└─' if last else '├─'} {text}")
        bars.append(before + ("   " if last else "│  "))
    return "\n".join(lines)


def _label(step: object) -> str:
    if not isinstance(step, Flat):
        return _plain(spell(step))
    if isinstance(step, Branching):
        return step.dsl
    first, options = _words(step)
    return ", ".join([f"{first}{_lambda_at(step)}", *options])


def _words(step: Flat) -> tuple[str, list[str]]:
    """``run push_book`` and ``["retries=3", "backoff=exponential"]``."""
    positional, named = arguments(step)
    values = [_value("ms" if isinstance(step, Wait | Debounce) else "", value) for value in positional]
    return f"{step.dsl} {', '.join(values)}", [f"{name}={_value(name, value)}" for name, value in named]


def _value(name: str, value: Any) -> str:
    if name in _DURATIONS and isinstance(value, int | float):
        return f"{value} ms" if isinstance(value, int) else f"{value:.10g} ms"
    return _plain(value if isinstance(value, str) else spell(value))


def _lambda_at(step: Flat) -> str:
    """A lambda has no name that tells; its file and line do."""
    values, _ = arguments(step)
    match values[-1]:
        case FunctionType(__name__="<lambda>", __code__=code):
            return f" ({basename(code.co_filename)}:{code.co_firstlineno})"
        case _:
            return ""


def _plain(text: str) -> str:
    return text if text.isprintable() else repr(text)


# ------------------------------------------------------------------ Mermaid


def mermaid(name: str, plan: Plan) -> str:
    """Nodes are numbered as in the plan. What stands after a ``repeat`` is drawn, and no edge leads to it."""
    chart = _Chart(name)
    for node in plan.nodes[1:]:
        level = plan.depth(node.id)
        chart.leave(level)
        if isinstance(node.step, Branching):
            chart.enter(node, level)
        else:
            chart.leaf(node, level)
    chart.leave(0)
    return chart.finished()


class _Chart:
    """Steps come in pre-order, so the step that ran before is the one that came before."""

    def __init__(self, name: str) -> None:
        self.lines = ["flowchart TD", f'    start(["{_escaped(_plain(name))}"])']
        self.edges: list[str] = []
        self.before: str | None = "start"  # None where nothing can come from: behind a repeat
        self.holders: list[tuple[int, Node]] = []
        self.entries: dict[int, str] = {}
        self.unentered: list[int] = []

    def enter(self, holder: Node, level: int) -> None:
        self.holders.append((level, holder))
        if _is_drawn(holder, level):
            self.lines.append(f'{_margin(level)}subgraph n{holder.id}["{_label(holder.step)}"]')
        if isinstance(holder.step, Repeat):
            self.unentered.append(holder.id)

    def leave(self, level: int) -> None:
        """Every holder that a step on this level cannot stand in."""
        while self.holders and self.holders[-1][0] >= level:
            its_level, holder = self.holders.pop()
            if _is_drawn(holder, its_level):
                self.lines.append(f"{_margin(its_level)}end")
            if isinstance(holder.step, Repeat):
                if self.before and holder.id in self.entries:
                    self.edges.append(f"    {self.before} -. again .-> {self.entries[holder.id]}")
                self.before = None

    def leaf(self, node: Node, level: int) -> None:
        here = f"n{node.id}"
        self.lines.append(f"{_margin(level)}{here}{_box(node.step)}")
        self._reach(here)
        self.entries.update((holder, here) for holder in self.unentered)
        self.unentered.clear()
        self.before = here

    def finished(self) -> str:
        if self.before:
            self.lines.append('    done(["done"])')
            self._reach("done")
        return "\n".join(self.lines + self.edges) + "\n"

    def _reach(self, here: str) -> None:
        if self.before:
            self.edges.append(f"    {self.before} --> {here}")


def _is_drawn(holder: Node, level: int) -> bool:
    """Mermaid makes a plain box of a subgraph without nodes."""
    return level <= NESTED and bool(holder.children)


def _margin(level: int) -> str:
    return "    " * min(level, NESTED + 1)


def _box(step: object) -> str:
    """The step's text in its shape: a question, a pause, a change of state, work, work at once, work on a list."""
    if not isinstance(step, Flat):
        return f'["{_escaped(_label(step))}"]'
    first, options = _words(step)
    text = _escaped(first) + "".join(f"<br/>{_escaped(option)}" for option in options)
    match step:
        case WaitUntil():
            return f'{{"{text}"}}'
        case Wait() | Debounce():
            return f'{{{{"{text}"}}}}'
        case SetState():
            return f'("{text}")'
        case Parallel() | Race():
            return f'[["{text}"]]'
        case Each():
            return f'[/"{text}"/]'
        case _:
            return f'["{text}"]'


def _escaped(text: str) -> str:
    return text.translate(_ESCAPED)
