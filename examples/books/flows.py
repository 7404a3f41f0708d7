"""The two flows. What they call is plain Python: ``urllib`` and ``sqlite3``; nothing here knows of processes."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from caravela import (
    Error,
    Ok,
    Retry,
    Skip,
    debounce,
    each,
    flow,
    parallel,
    repeat,
    run,
    sequence,
    set_state,
    wait_until,
)

from . import library

State = dict[str, Any]

PUSH_TIMEOUT = 0.150
"""Seconds that a push waits for its answer."""

http = build_opener(ProxyHandler({})).open  # the catalogue is on this machine: no proxy


# ------------------------------------------------------------------ sync_book: keep the catalogue up to date


def edit(state: State) -> State:
    """What a user does to a book. Sent as a signal."""
    return state | {"dirty": True, "edition": state["edition"] + 1}


def is_dirty(state: State) -> bool:
    return bool(state["dirty"])


def processing(state: State) -> State:
    return state | {"dirty": "processing"}


def push_book(state: State) -> Ok | Retry | Error:
    body = json.dumps({"edition": state["edition"]}).encode()
    try:
        with http(Request(state["url"], body, method="PUT"), timeout=PUSH_TIMEOUT) as answer:
            answer.read()
    except HTTPError as refusal:
        with refusal:
            return Error(f"the catalogue answers {refusal.code} {refusal.reason}")
    except (TimeoutError, URLError):  # a time-out before the request was out comes as URLError
        return Retry(state)
    return Ok(state | {"dirty": False})


sync_book = flow(
    "sync_book",
    repeat(
        wait_until(is_dirty),
        debounce(150),
        sequence(
            set_state(processing),
            run(push_book, retries=3, backoff="exponential", base_delay=200),
        ),
    ),
    initial_state={"dirty": False, "book_id": None, "url": None, "edition": 0},
)


# ------------------------------------------------------------------ import_books: fetch all, insert one by one


def fetch_book(url: str) -> State:
    with http(url, timeout=10) as answer:
        book: State = json.load(answer)
    return book


def fetch_all(state: State) -> list[Callable[[], State]]:
    return [partial(fetch_book, url) for url in state["urls"]]


def create_book(book: State, state: State) -> Ok | Skip:
    try:
        number = library.create_book(state["library"], book["title"], book["author"], book["year"])
    except library.Duplicate as duplicate:
        return Skip(str(duplicate))
    return Ok(state | {"results": [*state["results"], number]})


import_books = flow(
    "import_books",
    sequence(
        parallel(fetch_all, collect_as="fetched", max_concurrency=8),
        each("fetched", create_book),
    ),
    initial_state={"urls": [], "results": [], "library": None},
)
