"""What goes wrong and who edits what: a function of the seed, so that a run can be repeated.

Every book goes through three bursts of edits, and each burst is one push. Of the three pushes of a book, in an order
that the seed decides, one meets no trouble, one meets it once and one twice: by a time-out, a failure, or one of each.
So half of the requests go wrong, and none more often than the flow's three retries allow (with one to spare, should
a slow machine miss a deadline that nobody planned).
"""

import random
from collections.abc import Sequence
from enum import StrEnum

BURSTS = 3
"""Bursts of edits a book."""


class Fate(StrEnum):
    """What the server does with one request."""

    ANSWER = "answer"
    TIME_OUT = "time out"
    FAIL = "fail"


TROUBLES = (Fate.TIME_OUT, Fate.FAIL)


def chosen(seed: int, ids: Sequence[int], count: int = 5) -> list[int]:
    """The books that are edited, in the catalogue's order."""
    return sorted(random.Random(f"{seed} chosen").sample(ids, count))


def bursts(seed: int, book: int) -> tuple[int, ...]:
    """How many edits each burst has; seven in all."""
    sizes = [2, 2, 3]
    random.Random(f"{seed} bursts {book}").shuffle(sizes)
    return tuple(sizes)


def script(seed: int, book: int, push: int) -> tuple[Fate, ...]:
    """What befalls the requests of one push (from 1), one after the other; the last one is answered."""
    order = random.Random(f"{seed} troubles {book}")
    scripts: list[tuple[Fate, ...]] = [(), (order.choice(TROUBLES),), tuple(order.sample(TROUBLES, k=2))]
    order.shuffle(scripts)
    return (*scripts[(push - 1) % len(scripts)], Fate.ANSWER)


def fate(seed: int, book: int, push: int, attempt: int) -> Fate:
    """What befalls one request: the ``attempt``-th (from 1) of the book's ``push``-th push (from 1)."""
    fates = script(seed, book, push)
    return fates[min(attempt, len(fates)) - 1]
