"""Figures, and how they are shown: an aligned table for people, a dict for programs."""

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .timing import Sample


@dataclass(frozen=True, slots=True)
class Figure:
    """``target``: not to be exceeded. ``value`` is a median where there is a ``p99``."""

    key: str
    name: str
    value: float
    unit: str
    p99: float | None = None
    n: int | None = None
    target: float | None = None

    @classmethod
    def of(
        cls, key: str, name: str, sample: Sample, unit: str, scale: float = 1.0, *, target: float | None = None
    ) -> "Figure":
        return cls(key, name, sample.median * scale, unit, sample.p99 * scale, sample.n, target)

    @property
    def reached(self) -> bool | None:
        return None if self.target is None else self.value <= self.target


@dataclass(frozen=True, slots=True)
class Section:
    key: str
    title: str
    figures: list[Figure]
    notes: tuple[str, ...] = ()


def ratio(key: str, name: str, ours: Sample, theirs: Sample) -> Figure:
    """Of the medians."""
    return Figure(key, name, ours.median / theirs.median, "×")


def machine() -> dict[str, Any]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load": round(os.getloadavg()[0], 2),
    }


def machine_line(found: dict[str, Any]) -> str:
    return "{cores} cores · {kernel} · {python} · load before {load}".format(**found)


def table(section: Section) -> str:
    rows = [("", "median", "p99", "n", "unit", "target", "")] + [_row(figure) for figure in section.figures]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [section.title, "─" * (sum(widths) + 2 * len(widths))]
    for name, *numbers, unit, target, mark in rows:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:4], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells, unit.ljust(widths[4]), target.ljust(widths[5]), mark]))
    lines.extend(f"  {note}" for note in section.notes)
    return "\n".join(line.rstrip() for line in lines)


def _row(figure: Figure) -> tuple[str, str, str, str, str, str, str]:
    target = "" if figure.target is None else f"≤ {figure.target:g}" if figure.target else "0"
    mark = {None: "", True: "✓ reached", False: "✗ missed"}[figure.reached]
    p99 = "" if figure.p99 is None else _number(figure.p99)
    n = "" if figure.n is None else str(figure.n)
    return figure.name, _number(figure.value), p99, n, figure.unit, target, mark


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 or value == int(value) else f"{value:.2f}"


def as_data(found: dict[str, Any], options: dict[str, Any], sections: Iterable[Section]) -> dict[str, Any]:
    """What ``--json`` writes: ``{"machine", "options", <section>: {<figure>: {"value", "unit", …}}}``."""
    return {"machine": found, "options": options} | {
        section.key: {
            figure.key: {
                "name": figure.name,
                "value": figure.value,
                "unit": figure.unit,
                "p99": figure.p99,
                "n": figure.n,
                "target": figure.target,
                "reached": figure.reached,
            }
            for figure in section.figures
        }
        for section in sections
    }
