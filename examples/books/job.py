"""The work: import all books, kill the import halfway, edit five books; every notification as it comes.

There is one inbox. Six flows, each in its own process, notify it; this process only waits for it, prints, and acts
on what it hears. Nothing here sleeps.
"""

import os
import queue
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from caravela import FlowDone, FlowError, FlowHandle, FlowRestarted, FlowState, Supervisor

from . import library
from .catalogue import Book, read_books
from .flows import edit, import_books, sync_book
from .plan import bursts, chosen
from .report import Figures, Restart
from .screen import Mark, Screen, plural
from .server import Service, serving

PATIENCE = 15.0
"""Seconds without any notification after which something must be wrong."""


class Failed(Exception):
    """A flow failed, or nothing happened any more."""


class Importing:
    """The import, as its notifications tell it; kills it when a third of the books is in."""

    name = "import_books"

    def __init__(self, supervisor: Supervisor, inbox: Any, service: Service, books: list[Book], file: Path) -> None:
        urls = [service.book(book.id) for book in books]
        self.handle = supervisor.start(
            import_books,
            initial_state={"urls": urls, "results": [], "library": str(file)},
            notify=inbox,
            tag=self.name,
        )
        self.final: dict[str, Any] | None = None
        self.restarts: list[Restart] = []
        self._restarted = self.handle.subscribe(kinds=(FlowRestarted,))
        self._total = len(books)
        self._incarnation = 1
        self._fetched = False
        self._killed_at: float | None = None

    @property
    def over(self) -> bool:
        return self.final is not None

    def see(self, event: FlowState | FlowDone, screen: Screen) -> None:
        if event.incarnation > self._incarnation:
            self._come_back(event.incarnation, screen)
        match event:
            case FlowDone(state):
                self.final = state
                screen.line(self.name, Mark.DONE, f"done: {plural(len(state['results']), 'book')} inserted")
            case FlowState(state) if not state["results"]:
                if "fetched" in state and not self._fetched:
                    self._fetched = True
                    screen.line(
                        self.name, Mark.NOTE, f"fetched {plural(len(state['fetched']), 'book')}, eight at a time"
                    )
            case FlowState(state):
                done = len(state["results"])
                # First the kill, then the words: printing may be slow, and the worker goes on meanwhile.
                if self._killed_at is None and done * 3 >= self._total and self.handle.pid is not None:
                    self._kill(self.handle.pid, done, screen)
                else:
                    screen.line(self.name, Mark.NOTE, f"inserted {done} of {self._total}", fleeting=True)

    def _kill(self, pid: int, done: int, screen: Screen) -> None:
        os.kill(pid, signal.SIGKILL)
        self._killed_at = screen.elapsed()
        screen.line(self.name, Mark.KILL, f"kill -9 {pid}, at {done} of {self._total}")

    def _come_back(self, incarnation: int, screen: Screen) -> None:
        """The first state of a new incarnation is here: it runs. Why it had to is told by its ``FlowRestarted``."""
        gap = (screen.elapsed() - (self._killed_at or 0.0)) * 1000
        event = self._restarted.get(timeout=PATIENCE)
        assert isinstance(event, FlowRestarted)  # it asked for nothing else
        self._incarnation, self._fetched = incarnation, False
        cause = event.cause.detail if event.cause else "unknown"
        self.restarts.append(Restart(self.name, event.incarnation, cause, gap))
        text = f"{cause} → worker {self.handle.pid}, incarnation {incarnation}, back after {gap:.1f} ms"
        screen.line(self.name, Mark.BACK, text)


class Editing:
    """One book that is edited in bursts: the next begins when the last is pushed."""

    def __init__(
        self, supervisor: Supervisor, inbox: Any, service: Service, book: Book, sizes: tuple[int, ...]
    ) -> None:
        self.name = book.title
        self.sizes = sizes
        self.handle: FlowHandle = supervisor.start(
            sync_book,
            initial_state={"dirty": False, "book_id": book.id, "url": service.book(book.id), "edition": 0},
            notify=inbox,
            tag=self.name,
        )
        self._next = 0
        self._edited_at = 0.0
        self.over = False

    def burst(self, screen: Screen) -> None:
        """The edits of one burst, one right after the other: less than the flow's debounce time apart."""
        for _ in range(self.sizes[self._next]):
            self.handle.signal(edit)
        self._edited_at = screen.elapsed()
        self._next += 1

    def see(self, event: FlowState, screen: Screen) -> None:
        edition, dirty = event.state["edition"], event.state["dirty"]
        if dirty == "processing":
            screen.line(self.name, Mark.BUSY, f"pushing edition {edition}")
        elif dirty:
            screen.line(self.name, Mark.NOTE, f"edited: edition {edition}")
        else:
            waited = (screen.elapsed() - self._edited_at) * 1000
            screen.line(self.name, Mark.DONE, f"synced edition {edition}, {waited:,.0f} ms after the edit")
            self.over = self._next == len(self.sizes)
            if not self.over:
                self.burst(screen)


def work(seed: int, screen: Screen, folder: Path) -> Figures:
    """All of it; ``folder`` holds the library. Raises ``Failed`` when it cannot come to an end."""
    books, file = read_books(), folder / "library.sqlite"
    library.found(file)
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    phases: dict[str, float] = {}
    with serving(seed) as service, Supervisor() as supervisor:
        with measured("start", phases, screen):
            screen.title("caravela · books", f"{plural(len(books), 'book')} at {service.url} · seed {seed}")
            screen.line("catalogue", Mark.START, f"HTTP server, process {service.pid}")
            editing: dict[int, Editing] = {}
            for number in chosen(seed, [book.id for book in books]):
                one = Editing(supervisor, inbox, service, books[number - 1], bursts(seed, number))
                editing[number] = one
                screen.line(one.name, Mark.START, f"sync_book, worker {one.handle.pid}")
            importing = Importing(supervisor, inbox, service, books, file)
            screen.line(importing.name, Mark.START, f"worker {importing.handle.pid}")
            screen.write("")

        with measured("import", phases, screen):
            while not importing.over:
                importing.see(listen(inbox), screen)
            screen.write("")

        with measured("edits", phases, screen):
            by_name = {one.name: one for one in editing.values()}
            for one in editing.values():
                one.burst(screen)
            while not all(one.over for one in editing.values()):
                event = listen(inbox)
                by_name[event.tag].see(event, screen)

        figures = Figures(
            catalogue=books,
            rows=library.books(file),
            refused=library.refusals(file),
            log=service.log(),
            bursts={number: one.sizes for number, one in editing.items()},
            imported=importing.final,
            synced={number: one.handle.get_state() for number, one in editing.items()},
            incarnations={number: one.handle.incarnation for number, one in editing.items()},
            restarts=importing.restarts,
            phases=phases,
        )
        for one in editing.values():
            one.handle.stop()
    phases["total"] = screen.elapsed()
    return figures


def listen(inbox: "queue.SimpleQueue[Any]") -> Any:
    """The next notification that is good news."""
    try:
        event = inbox.get(timeout=PATIENCE)
    except queue.Empty:
        raise Failed(f"nothing has happened for {PATIENCE:g} s") from None
    if isinstance(event, FlowError):
        raise Failed(f"{event.tag} failed: {event.reason}")
    return event


@contextmanager
def measured(phase: str, phases: dict[str, float], screen: Screen) -> Iterator[None]:
    began = screen.elapsed()
    yield
    phases[phase] = screen.elapsed() - began
