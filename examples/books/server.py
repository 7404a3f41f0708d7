"""The catalogue: an HTTP server on loopback, in a process of its own, that goes wrong by plan.

    GET  /books/7     the book as JSON
    PUT  /books/7     {"edition": 3}: 204 stored · or held until the client gives up · or 503 · 409 if older than stored
    GET  /log         every request so far, with what came of it

The requests about one book are served one after the other. Who stores what is stored already either has not had his
answer, which is nobody's fault, or pushes too often: the log tells the two apart.

Started by :func:`serving`, which reads the address from its stdout. It lives as long as its stdin is open, so it
cannot outlive the process that started it, however that one ends.
"""

import argparse
import fcntl
import json
import socket
import subprocess
import sys
import termios
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from .catalogue import Book, read_books
from .plan import Fate, fate

ROOT = Path(__file__).parents[2]
HOLD = 5.0
"""Seconds for which an answer is held back at most; clients give up long before."""


class Outcome(StrEnum):
    """What came of a request, as the server saw it."""

    FETCHED = "fetched"
    STORED = "stored"
    STORED_AGAIN = "stored again"  # the same edition, from a client that was not there for the answer to its last try
    TIMED_OUT = "timed out"  # the client closed the connection while its answer was held
    FAILED = "failed"
    REFUSED = "refused"  # no such book, an old edition, no JSON
    UNMOVED = "unmoved"  # the client did not give up: not in the plan


@dataclass(frozen=True, slots=True)
class Entry:
    """One request. ``push`` and ``attempt`` count from 1, and are 0 for what is no push. Times in ms."""

    outcome: Outcome
    book: int
    edition: int
    push: int
    attempt: int
    at: float
    took: float


class Ledger:
    """What the catalogue knows: the books, their stored editions and every request. One lock for all handlers."""

    def __init__(self, seed: int, books: list[Book]) -> None:
        self.seed = seed
        self.books = {book.id: book for book in books}
        self.log: list[Entry] = []
        self._stored: dict[int, int] = {}
        self._unheard: dict[int, int] = {}  # book → edition that was stored for a client that does not know it
        self._attempts: dict[int, dict[int, int]] = {}  # book → edition → requests so far
        self._turns: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)
        self._lock = threading.Lock()

    def turn(self, book: int) -> threading.Lock:
        """Held while a push of the book is served, until its client has gone."""
        with self._lock:
            return self._turns[book]

    def attempt(self, book: int, edition: int) -> tuple[int, int]:
        """Which push of the book this is, and which attempt of that push: the edition is what tells pushes apart."""
        with self._lock:
            pushes = self._attempts.setdefault(book, {})
            pushes[edition] = pushes.get(edition, 0) + 1
            return list(pushes).index(edition) + 1, pushes[edition]

    def store(self, book: int, edition: int) -> Outcome:
        """``REFUSED`` when a newer edition is there."""
        with self._lock:
            if edition < self._stored.get(book, 0):
                return Outcome.REFUSED
            self._stored[book] = edition
            return Outcome.STORED_AGAIN if self._unheard.get(book) == edition else Outcome.STORED

    def told(self, book: int, edition: int, *, heard: bool) -> None:
        """Whether the client has its answer. One that has, and stores the same once more, is logged as ``STORED``."""
        with self._lock:
            if heard:
                self._unheard.pop(book, None)
            else:
                self._unheard[book] = edition

    def write(self, entry: Entry) -> None:
        with self._lock:
            self.log.append(entry)

    def read(self) -> list[dict[str, object]]:
        with self._lock:
            return [asdict(entry) for entry in self.log]


class Catalogue(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ledger = ledger
        self.began = time.monotonic()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is killed does not wait for its answer; anything else is a defect and goes to stderr."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]  # passed on as it came


class Handler(BaseHTTPRequestHandler):
    server: Catalogue  # pyright: ignore[reportIncompatibleVariableOverride]  # only Catalogue makes handlers

    def do_GET(self) -> None:
        began = time.monotonic()
        if self.path == "/log":
            return self.answer(200, self.server.ledger.read())
        book = self.server.ledger.books.get(self.book_id())
        if book is None:
            self.record(began, Outcome.REFUSED)
            return self.answer(404)
        self.record(began, Outcome.FETCHED, book.id)
        self.answer(200, asdict(book))

    def do_PUT(self) -> None:
        began, ledger = time.monotonic(), self.server.ledger
        try:
            edition = int(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["edition"])
        except (ValueError, KeyError, TypeError):
            self.record(began, Outcome.REFUSED)
            return self.answer(400)
        book = self.book_id()
        if book not in ledger.books:
            self.record(began, Outcome.REFUSED, book, edition)
            return self.answer(404)
        with ledger.turn(book):
            self.push(began, book, edition)

    def push(self, began: float, book: int, edition: int) -> None:
        ledger = self.server.ledger
        push, attempt = ledger.attempt(book, edition)
        match fate(ledger.seed, book, push, attempt):
            case Fate.TIME_OUT if self.gave_up():
                outcome, code = Outcome.TIMED_OUT, 0  # nobody is there to be answered
            case Fate.TIME_OUT:
                outcome, code = Outcome.UNMOVED, 504
            case Fate.FAIL:
                outcome, code = Outcome.FAILED, 503
            case Fate.ANSWER:
                outcome = ledger.store(book, edition)
                code = 409 if outcome is Outcome.REFUSED else 204
        self.record(began, outcome, book, edition, push, attempt)
        if code == 204:
            ledger.told(book, edition, heard=self.tell(code))
        elif code:
            self.answer(code)

    def tell(self, code: int) -> bool:
        """Answer, and see whether the client was still there for it. On a slow machine it may have given up."""
        self.connection.settimeout(HOLD)
        try:
            self.answer(code)
            with suppress(TimeoutError):  # it reads and stays: no reason to doubt that it knows
                self.connection.recv(1)
        except ConnectionError:  # it left with the answer unread
            return False
        # It closed its side. If it had the answer by then, the answer is acknowledged: nothing is left to be sent.
        unsent = fcntl.ioctl(self.connection, termios.TIOCOUTQ, bytes(4))
        return not any(unsent) and not self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def gave_up(self) -> bool:
        """Say nothing until the client has closed its side; False if it never does."""
        self.connection.settimeout(HOLD)
        try:
            return not self.connection.recv(1)
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def book_id(self) -> int:
        number = self.path.removeprefix("/books/")
        return int(number) if number.isascii() and number.isdigit() else 0

    def answer(self, code: int, body: object = None) -> None:
        data = b"" if body is None else json.dumps(body, ensure_ascii=False).encode()
        self.send_response(code)
        if code != 204:
            self.send_header("Content-Length", str(len(data)))
        if data:
            self.send_header("Content-Type", "application/json; charset=utf-8")
        self.end_headers()
        self.wfile.write(data)

    def record(
        self, began: float, outcome: Outcome, book: int = 0, edition: int = 0, push: int = 0, attempt: int = 0
    ) -> None:
        """Before the answer goes out: who has the answer finds the entry in the log."""
        now = time.monotonic()
        at, took = round((began - self.server.began) * 1000, 3), round((now - began) * 1000, 3)
        self.server.ledger.write(Entry(outcome, book, edition, push, attempt, at, took))

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr: the log is asked for."""


# ------------------------------------------------------------------ the other side


@dataclass(frozen=True, slots=True)
class Service:
    """A running catalogue."""

    url: str
    pid: int

    def book(self, number: int) -> str:
        return f"{self.url}/books/{number}"

    def log(self) -> list[Entry]:
        with build_opener(ProxyHandler({})).open(f"{self.url}/log", timeout=10) as answer:
            return [Entry(**entry | {"outcome": Outcome(entry["outcome"])}) for entry in json.load(answer)]


@contextmanager
def serving(seed: int) -> Iterator[Service]:
    """A catalogue in a process of its own, for as long as the block lasts."""
    command = [sys.executable, "-m", "examples.books.server", "--seed", str(seed)]
    # A session of its own: Ctrl-C in the terminal is for its parent, which then closes its stdin.
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            if not url:
                raise RuntimeError("the catalogue's server did not start")
            yield Service(url, process.pid)
        finally:
            process.stdin.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.books.server", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    with Catalogue(Ledger(parser.parse_args().seed, read_books())) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        sys.stdin.read()
        server.shutdown()


if __name__ == "__main__":
    main()
