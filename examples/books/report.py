"""What the run came to, and whether everybody tells the same story.

The figures are the server's (its log) and SQLite's. What the flows say themselves is only compared with them.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .catalogue import Book
from .screen import Screen, plural, short
from .server import Entry, Outcome

TROUBLE = (Outcome.TIMED_OUT, Outcome.FAILED)
SIGNS = {Outcome.STORED: "✓", Outcome.STORED_AGAIN: "↻", Outcome.TIMED_OUT: "○", Outcome.FAILED: "✗"}
EDITS, EDITED = 20, 5
"""So many edits there must be at least, and of so many books."""


@dataclass(frozen=True, slots=True)
class Restart:
    """One ``FlowRestarted``. ``gap``: ms from the kill to the first state of the new incarnation."""

    flow: str
    incarnation: int
    cause: str
    gap: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that is known when the work is over."""

    catalogue: list[Book]
    rows: list[tuple[str, str, int]]
    """SQLite: title, author, year of each book."""
    refused: int
    """SQLite: duplicates that it did not take."""
    log: list[Entry]
    """The server: every request."""
    bursts: dict[int, tuple[int, ...]]
    """The user: how many edits each burst had, by book."""
    imported: dict[str, Any] | None
    """The import's final state."""
    synced: dict[int, dict[str, Any]]
    """The last state of each book's flow."""
    incarnations: dict[int, int]
    """The incarnation in which each book's flow was at the end."""
    restarts: list[Restart] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds."""

    @property
    def pushes(self) -> list[Entry]:
        return [entry for entry in self.log if entry.push]

    @property
    def kept(self) -> int:
        """Books that were there when the import was killed: exactly what its successor had refused."""
        return self.refused


@dataclass(frozen=True, slots=True)
class Check:
    claim: str
    wrong: str = ""
    """What disagrees; empty when nothing does."""

    @property
    def right(self) -> bool:
        return not self.wrong


def judge(figures: Figures) -> list[Check]:
    """Everything that must hold; the run has succeeded when all of it is right."""
    return [
        every_book_once(figures),
        killed_midway(figures),
        restarted_once(figures),
        others_untouched(figures),
        enough_edits(figures),
        one_push_a_burst(figures),
        enough_trouble(figures),
        same_editions(figures),
    ]


def every_book_once(figures: Figures) -> Check:
    wanted = Counter((book.title, book.author, book.year) for book in figures.catalogue)
    there = Counter(figures.rows)
    missing, surplus = wanted - there, there - wanted
    wrong = [
        f"{name}: {', '.join(short(row[0]) for row in list(some)[:3])} ({some.total()} in all)"
        for name, some in (("missing", missing), ("too many", surplus))
        if some
    ]
    if figures.imported is None:
        wrong.append("the import did not end")
    return Check("every book of the catalogue is in the library, once", "; ".join(wrong))


def killed_midway(figures: Figures) -> Check:
    total, kept = len(figures.catalogue), figures.kept
    claim = "the kill struck mid-import: what was in before was skipped afterwards"
    if not 0 < kept < total:
        return Check(claim, f"{kept} of {total} books were refused as duplicates")
    inserted = len(figures.imported["results"]) if figures.imported else 0
    if inserted != total - kept:
        return Check(claim, f"the import says {inserted} inserted after the restart, the library {total - kept}")
    return Check(claim)


def restarted_once(figures: Figures) -> Check:
    claim = "one restart: of the import, by SIGKILL, and its second incarnation finished"
    match figures.restarts:
        case [Restart("import_books", 2, cause)] if "SIGKILL" in cause:
            return Check(claim)
        case restarts:
            seen = [f"{one.flow} → incarnation {one.incarnation}, {one.cause}" for one in restarts]
            return Check(claim, f"seen: {'; '.join(seen) or 'none'}")


def others_untouched(figures: Figures) -> Check:
    moved = [book for book, incarnation in figures.incarnations.items() if incarnation != 1]
    claim = f"the other {plural(len(figures.incarnations), 'worker')} did not notice"
    return Check(claim, f"restarted: {moved}" if moved else "")


def expected_editions(figures: Figures) -> dict[int, list[int]]:
    """The editions that the server must see: after each burst, and none in between."""
    return {book: [sum(sizes[: last + 1]) for last in range(len(sizes))] for book, sizes in figures.bursts.items()}


def editions_stored(figures: Figures) -> dict[int, int]:
    """The server: the last edition of each book."""
    return {entry.book: entry.edition for entry in figures.pushes if entry.outcome is Outcome.STORED}


def enough_edits(figures: Figures) -> Check:
    """Each edit counts the edition up by one, so the server's last edition is the number of edits that it knows of."""
    stored = editions_stored(figures)
    edits = sum(stored.values())
    claim = f"at least {plural(EDITS, 'edit')} of {plural(EDITED, 'book')} have reached the server"
    if edits < EDITS or len(stored) < EDITED:
        return Check(claim, f"{plural(edits, 'edit')} of {plural(len(stored), 'book')}")
    return Check(claim)


def one_push_a_burst(figures: Figures) -> Check:
    """One push is one edition that is stored once, after as many requests as it takes.

    Requests are tries: a push that timed out or failed is sent again, with the same edition. So of what was *tried*
    only the order of the editions counts. What was *stored* counts entry by entry. There is one case in which an
    honest client stores twice: it gave up just when its edition was stored. Only the server can know, and logs the
    next try as STORED_AGAIN. Two STORED of one edition are two pushes.
    """
    wanted = expected_editions(figures)
    tried: dict[int, list[int]] = {book: [] for book in wanted}
    stored: dict[int, list[int]] = {book: [] for book in wanted}
    for entry in figures.pushes:
        editions = tried.setdefault(entry.book, [])
        if entry.edition not in editions:
            editions.append(entry.edition)
        if entry.outcome is Outcome.STORED:
            stored.setdefault(entry.book, []).append(entry.edition)
    wrong = [
        f"book {book}: {wanted.get(book)} were due, the server was sent {tried[book]} and stored {stored.get(book)}"
        for book in tried
        if not wanted.get(book) == tried[book] == stored.get(book)
    ]
    count = sum(map(len, wanted.values()))
    claim = f"{plural(count, 'burst')} of edits, {plural(count, 'push')}: each once, with the last edition"
    return Check(claim, "; ".join(wrong))


def enough_trouble(figures: Figures) -> Check:
    trouble = sum(entry.outcome in TROUBLE for entry in figures.pushes)
    strange = [entry for entry in figures.log if entry.outcome in (Outcome.REFUSED, Outcome.UNMOVED)]
    claim = "at least a fifth of all requests to push timed out or failed"
    if strange:
        return Check(claim, f"{plural(len(strange), 'request')} refused or never given up, as nobody planned")
    if not figures.pushes or trouble * 5 < len(figures.pushes):
        return Check(claim, f"{trouble} of {len(figures.pushes)}")
    return Check(claim)


def same_editions(figures: Figures) -> Check:
    stored = editions_stored(figures)
    wrong = [
        f"book {book}: the server has edition {stored.get(book)}, its flow says {state}"
        for book in figures.bursts
        if (state := figures.synced.get(book, {})).get("dirty") is not False or state.get("edition") != stored.get(book)
    ]
    return Check("server and flows agree on the edition of each edited book", "; ".join(wrong))


# ------------------------------------------------------------------ the summary


def summary(figures: Figures, screen: Screen) -> bool:
    """Write it; True when everything agrees."""
    screen.title("Summary", "from the server's log and SQLite")
    for head, text in rows(figures):
        screen.row(head, text)
    screen.write("")
    checks = judge(figures)
    for check in checks:
        screen.verdict(check.right, check.claim)
        if not check.right:
            screen.write(f"    {check.wrong}")
    screen.write("")
    return all(check.right for check in checks)


def rows(figures: Figures) -> Iterator[tuple[str, str]]:
    pushes, outcomes = figures.pushes, Counter(entry.outcome for entry in figures.log)
    yield (
        "books",
        phrase(
            f"{len(figures.rows)} of {len(figures.catalogue)} in the library",
            plural(outcomes[Outcome.FETCHED], "fetch"),
            f"{plural(figures.refused, 'duplicate')} skipped",
        ),
    )
    for restart in figures.restarts:
        yield (
            "restart",
            phrase(
                f"{restart.flow} after {plural(figures.kept, 'book')}",
                restart.cause,
                f"incarnation {restart.incarnation} runs {restart.gap:.1f} ms after the kill",
            ),
        )
    yield (
        "edits",
        phrase(
            f"{plural(sum(map(sum, figures.bursts.values())), 'edit')} of {plural(len(figures.bursts), 'book')}",
            plural(sum(map(len, figures.bursts.values())), "burst"),
            plural(outcomes[Outcome.STORED], "push"),
        ),
    )
    trouble = sum(outcomes[one] for one in TROUBLE)
    yield (
        "requests",
        phrase(
            f"{len(pushes)} to push",
            f"{plural(outcomes[Outcome.TIMED_OUT], 'time-out')} {SIGNS[Outcome.TIMED_OUT]}",
            f"{plural(outcomes[Outcome.FAILED], 'failure')} {SIGNS[Outcome.FAILED]}",
            f"{trouble / max(1, len(pushes)):.0%} in trouble",
            plural(sum(entry.attempt > 1 for entry in pushes), "retry"),
        ),
    )
    titles = {book.id: book.title for book in figures.catalogue}
    for number, (book, editions) in enumerate(expected_editions(figures).items()):
        cells = "".join(f"{edition} {signs(pushes, book, edition):<6}" for edition in editions)
        yield "" if number else "editions", f"{short(titles[book], 36):<36}  {cells}".rstrip()
    yield "time", phrase(*(f"{phase} {seconds:.2f} s" for phase, seconds in figures.phases.items()))


def signs(pushes: list[Entry], book: int, edition: int) -> str:
    """What came of each request of one push: ``○✗✓``."""
    return "".join(SIGNS.get(entry.outcome, "?") for entry in pushes if (entry.book, entry.edition) == (book, edition))


def phrase(*parts: str) -> str:
    return " · ".join(parts)
