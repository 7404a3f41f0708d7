"""Lines on a terminal: when, who, what. Plain text when it is no terminal, or when NO_COLOR is set."""

import os
import time
from enum import Enum
from typing import TextIO

WHO = 24
"""Columns for the name of a flow."""


class Mark(Enum):
    """The sign before a line and the colour it has on a terminal (SGR)."""

    START = "○", "36"
    NOTE = "·", "2"
    BUSY = "◌", "33"
    DONE = "●", "32"
    KILL = "✗", "1;31"
    BACK = "↻", "1;36"
    RIGHT = "✓", "32"
    WRONG = "✗", "31"


DIM, BOLD = "2", "1"


def short(text: str, width: int = WHO) -> str:
    """Cut to ``width`` columns, with an ellipsis where something is missing."""
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def plural(count: int, thing: str) -> str:
    """``1 push``, ``2 pushes``, ``3 retries``, ``1,024 books``."""
    if count == 1:
        return f"1 {thing}"
    if thing.endswith("ry"):
        return f"{count:,} {thing[:-1]}ies"
    return f"{count:,} {thing}{'es' if thing.endswith(('s', 'sh', 'ch')) else 's'}"


class Screen:
    def __init__(self, out: TextIO) -> None:
        self.began = time.monotonic()
        self._out = out
        self._fleeting = False
        self._moves = out.isatty() and os.environ.get("TERM") != "dumb"
        self._colour = self._moves and not os.environ.get("NO_COLOR")

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def title(self, text: str, rest: str = "") -> None:
        self.write("")
        self.write(f"{self.paint(BOLD, text)}{'  ' if rest else ''}{self.paint(DIM, rest)}")
        self.write("")

    def line(self, who: str, mark: Mark, text: str, *, fleeting: bool = False) -> None:
        """Something happened, now. ``fleeting``: on a terminal the next line takes its place."""
        sign, colour = mark.value
        when = self.paint(DIM, f"{self.elapsed():8.3f} s")
        loud = mark in (Mark.KILL, Mark.BACK)
        self.write(
            f"{when}  {short(who):<{WHO}}  {self.paint(colour, sign)} {self.paint(colour, text) if loud else text}"
        )
        self._fleeting = fleeting and self._moves

    def row(self, head: str, text: str) -> None:
        self.write(f"  {self.paint(DIM, f'{head:<10}')}{text}")

    def verdict(self, right: bool, text: str) -> None:
        sign, colour = (Mark.RIGHT if right else Mark.WRONG).value
        self.write(f"  {self.paint(colour, sign)} {text}")

    def write(self, text: str) -> None:
        over = "\x1b[A\x1b[2K" if self._fleeting else ""
        self._fleeting = False
        print(over + text, file=self._out, flush=True)

    def paint(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colour and text else text
