"""The example of the books: its data, its plan, its server, its judge, and the whole of it."""

import json
import os
import re
import select
import signal
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request

import pytest

from caravela import Error, Ok, Retry, Skip
from examples.books import library, report
from examples.books.catalogue import Book, read_books
from examples.books.flows import create_book, edit, fetch_book, http, push_book
from examples.books.plan import BURSTS, Fate, bursts, chosen, script
from examples.books.report import Figures, Restart, judge, summary
from examples.books.screen import Screen, plural, short
from examples.books.server import Entry, Outcome, Service, serving

ROOT = Path(__file__).parents[2]
SEED = 1
BOOKS = read_books()
IDS = [book.id for book in BOOKS]


# ------------------------------------------------------------------ the books


def test_there_are_at_least_200_books_none_twice() -> None:
    assert len(BOOKS) >= 200
    assert len({(book.title, book.author) for book in BOOKS}) == len(BOOKS)
    assert list(range(1, len(BOOKS) + 1)) == IDS


def test_every_book_is_whole_and_old_enough() -> None:
    for book in BOOKS:
        assert book.title
        assert book.title == book.title.strip()
        assert book.author
        assert book.author == book.author.strip()
        assert "\N{REPLACEMENT CHARACTER}" not in book.title + book.author
        assert 1450 < book.year < 1929


# ------------------------------------------------------------------ the plan


@pytest.mark.parametrize("seed", range(25))
def test_plan_is_a_function_of_the_seed_with_enough_trouble_and_an_end(seed: int) -> None:
    books = chosen(seed, IDS)
    assert books == chosen(seed, IDS)
    assert len(set(books)) == 5
    scripts = [script(seed, book, push) for book in books for push in range(1, BURSTS + 1)]
    assert scripts == [script(seed, book, push) for book in books for push in range(1, BURSTS + 1)]
    fates = Counter(one for fates in scripts for one in fates)
    assert (fates[Fate.TIME_OUT] + fates[Fate.FAIL]) * 5 >= fates.total()
    assert fates[Fate.TIME_OUT]
    assert fates[Fate.FAIL]
    assert all(len(fates) <= 3 and fates.index(Fate.ANSWER) == len(fates) - 1 for fates in scripts)
    edits = [bursts(seed, book) for book in books]
    assert sum(map(sum, edits)) >= 20
    assert all(len(sizes) == BURSTS and min(sizes) > 1 for sizes in edits)


def test_another_seed_is_another_plan() -> None:
    assert len({tuple(chosen(seed, IDS)) for seed in range(10)}) > 1
    assert len({script(seed, 1, 1) for seed in range(20)}) > 1


# ------------------------------------------------------------------ the server


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving(SEED) as running:
        yield running


def push(service: Service, book: int, edition: int, timeout: float = 0.05) -> int:
    request = Request(service.book(book), json.dumps({"edition": edition}).encode(), method="PUT")
    try:
        with http(request, timeout=timeout) as answer:
            return int(answer.status)
    except HTTPError as refusal:
        with refusal:
            return refusal.code


def entries(service: Service, book: int) -> list[Entry]:
    return [entry for entry in service.log() if entry.book == book]


def a_book(*fates: Fate, first: int = 1) -> int:
    """One from ``first`` on whose first push meets just this."""
    return next(number for number in IDS[first - 1 :] if script(SEED, number, 1) == fates)


def test_server_gives_books_and_knows_no_others(service: Service) -> None:
    for book in (BOOKS[0], BOOKS[-1]):
        assert Book(**fetch_book(service.book(book.id))) == book
        assert entries(service, book.id)[0].outcome is Outcome.FETCHED
    for number in (0, len(BOOKS) + 1):
        with pytest.raises(HTTPError) as refusal:
            fetch_book(service.book(number))
        assert refusal.value.code == 404
        refusal.value.close()


def test_server_follows_the_plan_and_logs_what_came_of_it(service: Service) -> None:
    book = next(number for number in IDS[10:] if Fate.TIME_OUT in script(SEED, number, 1))
    planned = [one for number in range(1, BURSTS + 1) for one in script(SEED, book, number)]
    pushes = [
        (number, attempt)
        for number in range(1, BURSTS + 1)
        for attempt in range(1, len(script(SEED, book, number)) + 1)
    ]
    for wanted, (number, _) in zip(planned, pushes, strict=True):
        if wanted is Fate.TIME_OUT:
            with pytest.raises(TimeoutError):
                push(service, book, number * 10)
        else:
            assert push(service, book, number * 10, timeout=10) == {Fate.FAIL: 503, Fate.ANSWER: 204}[wanted]
    # A held request is logged when the server sees that its client has gone.
    while len(log := entries(service, book)) < len(pushes):
        pass
    log.sort(key=lambda entry: (entry.push, entry.attempt))
    assert [(entry.push, entry.attempt) for entry in log] == pushes
    outcomes = {Fate.TIME_OUT: Outcome.TIMED_OUT, Fate.FAIL: Outcome.FAILED, Fate.ANSWER: Outcome.STORED}
    assert [entry.outcome for entry in log] == [outcomes[wanted] for wanted in planned]
    assert [entry.edition for entry in log] == [number * 10 for number, _ in pushes]


def test_server_takes_no_old_edition_and_no_nonsense(service: Service) -> None:
    book = next(number for number in IDS[50:] if script(SEED, number, 1) == script(SEED, number, 4) == (Fate.ANSWER,))
    assert push(service, book, 5, timeout=10) == 204
    while (code := push(service, book, 4, timeout=10)) == 503:
        pass
    assert code == 409
    with pytest.raises(HTTPError) as refusal:
        http(Request(service.book(book), b"nonsense", method="PUT"), timeout=10)
    assert refusal.value.code == 400
    refusal.value.close()


def leave(service: Service, book: int, edition: int, *, answered: bool) -> None:
    """Push, and go without having read the answer: before it comes, or when it is there."""
    host, port = service.url.removeprefix("http://").split(":")
    body = json.dumps({"edition": edition})
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(f"PUT /books/{book} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        if answered:
            assert select.select([client], [], [], 10)[0]


@pytest.mark.parametrize("answered", [False, True])
def test_server_tells_a_lost_answer_from_a_push_too_many(service: Service, answered: bool) -> None:
    number = 150 if answered else 200
    book = a_book(Fate.ANSWER, first=number)
    leave(service, book, 1, answered=answered)
    while not entries(service, book):  # there may still be one who left before the server has read a word
        pass
    leave(service, book, 1, answered=answered)
    while len(entries(service, book)) < 2:
        pass
    assert push(service, book, 1, timeout=10) == 204
    assert push(service, book, 1, timeout=10) == 204
    stored, again = Outcome.STORED, Outcome.STORED_AGAIN
    assert [entry.outcome for entry in entries(service, book)] == [stored, again, again, stored]


def test_server_ends_with_the_process_that_started_it() -> None:
    code = "from examples.books.server import serving\nwith serving(1) as s: print(s.pid, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout
        server = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    ended, _, _ = select.select([server], [], [], 5)
    os.close(server)
    assert ended


# ------------------------------------------------------------------ bodies of the flows


def test_push_retries_a_time_out_and_reports_a_failure(service: Service) -> None:
    def state(book: int) -> dict[str, Any]:
        return edit({"dirty": False, "book_id": book, "url": service.book(book), "edition": 0})

    fine = state(a_book(Fate.ANSWER, first=100))
    assert fine["dirty"] is True
    assert fine["edition"] == 1
    assert push_book(fine) == Ok(fine | {"dirty": False})
    slow = state(a_book(Fate.TIME_OUT, Fate.ANSWER, first=100))
    assert push_book(slow) == Retry(slow)
    broken = state(a_book(Fate.FAIL, Fate.ANSWER, first=100))
    assert push_book(broken) == Error("the catalogue answers 503 Service Unavailable")
    assert push_book(broken) == Ok(broken | {"dirty": False})


def test_create_book_inserts_once_and_skips_a_duplicate(tmp_path: Path) -> None:
    file = tmp_path / "library.sqlite"
    library.found(file)
    state = {"library": str(file), "results": []}
    book = {"title": "Os Lusíadas", "author": "Luís de Camões", "year": 1572}
    assert create_book(book, state) == Ok(state | {"results": [1]})
    assert create_book(book, state) == Skip("Os Lusíadas by Luís de Camões")
    assert library.books(file) == [("Os Lusíadas", "Luís de Camões", 1572)]
    assert library.refusals(file) == 1
    with pytest.raises(sqlite3.OperationalError):
        create_book(book, {"library": str(tmp_path / "none" / "library.sqlite"), "results": []})


# ------------------------------------------------------------------ the judge


def good() -> Figures:
    """A run that went well: six books, killed after one, five of them edited."""
    catalogue = [
        Book(1, "Faust", "Goethe", 1808),
        Book(2, "Emma", "Austen", 1815),
        Book(3, "Candide", "Voltaire", 1759),
        Book(4, "Walden", "Thoreau", 1854),
        Book(5, "Ivanhoe", "Scott", 1819),
        Book(6, "Oblomov", "Goncharov", 1859),
    ]
    log = [Entry(Outcome.FETCHED, book.id, 0, 0, 0, 1.0, 1.0) for book in catalogue]
    for number, (book, edition, push, attempt, outcome) in enumerate([
        (1, 2, 1, 1, Outcome.TIMED_OUT),
        (1, 2, 1, 2, Outcome.STORED),
        (3, 4, 1, 1, Outcome.STORED),
        (4, 4, 1, 1, Outcome.STORED),
        (5, 4, 1, 1, Outcome.STORED),
        (6, 4, 1, 1, Outcome.STORED),
        (1, 4, 2, 1, Outcome.FAILED),
        (1, 4, 2, 2, Outcome.STORED),
    ]):  # fmt: skip
        log.append(Entry(outcome, book, edition, push, attempt, 10.0 + number, 1.0))
    return Figures(
        catalogue=catalogue,
        rows=[(book.title, book.author, book.year) for book in catalogue],
        refused=1,
        log=log,
        bursts={1: (2, 2), 3: (4,), 4: (4,), 5: (4,), 6: (4,)},
        imported={"results": [2, 3, 4, 5, 6]},
        synced={book: {"dirty": False, "edition": 4} for book in (1, 3, 4, 5, 6)},
        incarnations=dict.fromkeys((1, 3, 4, 5, 6), 1),
        restarts=[Restart("import_books", 2, "SIGKILL in sequence/each[2]", 3.5)],
        phases={"import": 1.0, "total": 2.0},
    )


def with_outcome(log: list[Entry], number: int, **changes: Any) -> list[Entry]:
    pushes = [index for index, entry in enumerate(log) if entry.push]
    return [replace(entry, **changes) if index == pushes[number] else entry for index, entry in enumerate(log)]


def short_of(books: int, edits: int) -> dict[str, Any]:
    """The good run with only so many edits of so many books, and everybody agrees on that."""
    ids = [1, 3, 4, 5, 6][:books]
    last = edits - 4 * (books - 1)
    return {
        "log": [
            replace(entry, edition=last) if entry.push and entry.book == ids[-1] else entry
            for entry in good().log
            if not entry.push or entry.book in ids
        ],
        "bursts": {book: good().bursts[book] for book in ids[:-1]} | {ids[-1]: (last,)},
        "synced": {book: {"dirty": False, "edition": last if book == ids[-1] else 4} for book in ids},
    }


def test_judge_agrees_with_a_good_run() -> None:
    assert all(check.right for check in judge(good()))
    assert summary(good(), Screen(StringIO()))


def test_judge_forgives_a_client_that_could_not_know() -> None:
    figures = replace(good(), log=[*LOG, replace(LOG[-1], outcome=Outcome.STORED_AGAIN, attempt=3)])
    assert all(check.right for check in judge(figures))


LOG = good().log
ROWS = good().rows


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        pytest.param({"rows": ROWS[:-1]}, "every book", id="a book is missing"),
        pytest.param({"rows": [*ROWS, ROWS[0]]}, "every book", id="a book twice"),
        pytest.param({"rows": [("Faust", "Goethe", 1809), *ROWS[1:]]}, "every book", id="another year"),
        pytest.param({"imported": None}, "every book", id="import without an end"),
        pytest.param({"refused": 0}, "the kill struck", id="killed before the first insert"),
        pytest.param({"refused": 6}, "the kill struck", id="killed after the last insert"),
        pytest.param(
            {"imported": {"results": [1, 2, 3, 4, 5, 6]}}, "the kill struck", id="import and library count differently"
        ),
        pytest.param({"restarts": []}, "one restart", id="no restart"),
        pytest.param({"restarts": good().restarts * 2}, "one restart", id="two restarts"),
        pytest.param({"restarts": [Restart("import_books", 3, "SIGKILL", 1.0)]}, "one restart", id="incarnation 3"),
        pytest.param({"restarts": [Restart("import_books", 2, "exit code 1", 1.0)]}, "one restart", id="another cause"),
        pytest.param({"restarts": [Restart("sync_book", 2, "SIGKILL", 1.0)]}, "one restart", id="another flow"),
        pytest.param(
            {"incarnations": good().incarnations | {1: 2}}, "the other 5 workers", id="another worker restarted"
        ),
        pytest.param(short_of(books=5, edits=19), "at least 20 edits", id="an edit too few"),
        pytest.param(short_of(books=4, edits=20), "at least 20 edits", id="a book too few"),
        pytest.param({"log": [*LOG, LOG[-1]]}, "6 bursts", id="an edition that was stored twice"),
        pytest.param({"log": [*LOG, *[LOG[-1]] * 2]}, "6 bursts", id="an edition that was stored three times"),
        pytest.param({"log": [*LOG[:-2], LOG[-1], *LOG[-2:]]}, "6 bursts", id="a push after the push"),
        pytest.param({"log": LOG[:-1]}, "6 bursts", id="a push that never arrived"),
        pytest.param({"log": [*LOG, replace(LOG[-1], edition=5)]}, "6 bursts", id="a push too many"),
        pytest.param({"log": with_outcome(LOG, 0, edition=1)}, "6 bursts", id="a push in the middle of a burst"),
        pytest.param({"log": [entry for entry in LOG if not entry.push]}, "6 bursts", id="no push at all"),
        pytest.param(
            {"log": [one for one in LOG if one.outcome not in report.TROUBLE]}, "at least a fifth", id="no trouble"
        ),
        pytest.param({"log": [*LOG[:-2], LOG[-1]]}, "at least a fifth", id="a seventh of trouble"),
        pytest.param(
            {"log": with_outcome(LOG, 0, outcome=Outcome.UNMOVED)}, "at least a fifth", id="client that waits"
        ),
        pytest.param({"log": with_outcome(LOG, 0, outcome=Outcome.REFUSED)}, "at least a fifth", id="a refusal"),
        pytest.param({"synced": short_of(4, 16)["synced"]}, "server and flows", id="a flow without a state"),
        pytest.param(
            {"synced": good().synced | {3: {"dirty": False, "edition": 2}}}, "server and flows", id="an old edition"
        ),
        pytest.param(
            {"synced": good().synced | {3: {"dirty": "processing", "edition": 3}}}, "server and flows", id="still dirty"
        ),
    ],
)
def test_judge_sees_each_disagreement(changes: dict[str, Any], claim: str) -> None:
    figures = replace(good(), **changes)
    wrong = [check for check in judge(figures) if not check.right]
    assert any(check.claim.startswith(claim) and check.wrong for check in wrong), [check.claim for check in wrong]
    out = StringIO()
    assert not summary(figures, Screen(out))
    assert all(check.wrong in out.getvalue() for check in wrong)


# ------------------------------------------------------------------ the screen


def test_screen_is_plain_where_nobody_looks() -> None:
    out = StringIO()
    summary(good(), Screen(out))
    assert "\x1b" not in out.getvalue()
    assert "6 of 6 in the library" in out.getvalue()


def test_screen_has_colour_on_a_terminal_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    summary(good(), Screen(colourful := Terminal()))
    monkeypatch.setenv("NO_COLOR", "1")
    summary(good(), Screen(plain := Terminal()))
    assert "\x1b" in colourful.getvalue()
    assert "\x1b" not in plain.getvalue()
    assert re.sub(r"\x1b\[[0-9;]*m", "", colourful.getvalue()) == plain.getvalue()


def test_words_are_cut_and_counted() -> None:
    assert short("Faust", 5) == "Faust"
    assert short("Fausto", 5) == "Faus…"
    assert plural(3, "retry") == "3 retries"
    assert [plural(1, "push"), plural(2, "push"), plural(1024, "book")] == ["1 push", "2 pushes", "1,024 books"]


# ------------------------------------------------------------------ the whole


@pytest.mark.timeout(60)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_job_ends_well(seed: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.books", "--once", "--seed", str(seed)]
    run = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=55
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert not run.stderr
    assert "\x1b" not in run.stdout
    assert "SIGKILL" in run.stdout
    assert (
        len(re.findall(r"inserted \d+ of 350", run.stdout)) > 300
    )  # a line for every notification, where nothing moves
    assert not list(tmp_path.iterdir())


@pytest.mark.timeout(60)
def test_the_job_can_be_interrupted(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.books"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as job:
        assert job.stdout
        assert job.stderr
        for line in job.stdout:
            if "inserted" in line:
                job.send_signal(signal.SIGINT)
                break
        job.stdout.read()
        errors = job.stderr.read()
    assert (job.returncode, errors) == (130, "\ninterrupted\n")
    assert not list(tmp_path.iterdir())
