"""The status page says where a worker stood, whatever happened to it in the middle of a word."""

import os
import signal
import struct
from collections.abc import Iterator

import pytest

from caravela.protocol.status import PATH_ROOM, SIZE, Page, Status


@pytest.fixture
def page() -> Iterator[Page]:
    page, fd = Page.create()
    os.close(fd)
    yield page
    page.close()


def test_a_new_page_is_empty(page: Page) -> None:
    assert page.read() == Status(applied=0, executing=0, path="", attempt=0, looped=0.0)


def test_what_is_written_is_read(page: Page) -> None:
    page.enter("repeat/sequence[2]/run[1]", 3)
    page.executing(2**63)
    page.applied(2**64 - 1)
    page.looped(123.456789)
    assert page.read() == Status(2**64 - 1, 2**63, "repeat/sequence[2]/run[1]", 3, 123.456789)
    page.enter("wait", 1)
    page.executing(0)
    assert page.read() == Status(2**64 - 1, 0, "wait", 1, 123.456789)
    page.enter("wait", 2)
    assert page.read().attempt == 2


def test_the_other_end_sees_it_without_the_first_ones_fd() -> None:
    worker, fd = Page.create()
    reader = Page.attach(fd)
    os.close(fd)
    worker.enter("run", 1)
    worker.close()
    assert reader.read().path == "run"
    reader.close()


@pytest.mark.parametrize("letter", ["x", "ü", "…", "\U0001f600"])
def test_a_path_longer_than_the_room_is_cut(page: Page, letter: str) -> None:
    fits = letter * (PATH_ROOM // len(letter.encode()))
    page.enter(fits, 1)
    assert page.read().path == fits
    page.enter(fits + letter, 1)
    cut = page.read().path
    assert cut.endswith("…") and (fits + letter).startswith(cut[:-1])
    assert PATH_ROOM - 8 < len(cut.encode()) <= PATH_ROOM
    page.enter("short", 1)
    page.enter("s", 1)
    assert page.read().path == "s"


def test_a_path_that_is_no_text_does_no_harm(page: Page) -> None:
    page.enter("a\udcffb", 1)
    assert page.read().path == "a?b"


def test_a_worker_killed_within_a_write_left_the_last_whole_path() -> None:
    page, fd = Page.create()
    page.enter("first", 1)
    page.enter("second", 2)
    # The third write, cut anywhere before the turn is advanced, touches only the slot that is not shown.
    for cut in range(0, 16 + PATH_ROOM, 97):
        os.pwrite(fd, b"\xff" * cut, 2080)
        assert page.read() == Status(0, 0, "second", 2, 0.0)
    os.close(fd)
    page.close()


def test_nonsense_on_the_page_can_be_read() -> None:
    page, fd = Page.create()
    os.pwrite(fd, b"\xff" * SIZE, 0)
    status = page.read()
    assert status.path == "\N{REPLACEMENT CHARACTER}" * PATH_ROOM
    os.pwrite(fd, struct.pack("=4Q", 2, 1, 1, 0), 0)
    assert page.read().applied == 1
    os.close(fd)
    page.close()


def test_a_worker_cannot_cut_the_page_off_under_its_reader() -> None:
    page, fd = Page.create()
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)
    page.close()


def test_it_is_readable_after_a_kill_and_never_torn_meanwhile() -> None:
    page, fd = Page.create()
    paths = ["a" * 1900, "b" * 7]
    child = os.fork()
    if child == 0:
        try:
            mine = Page.attach(fd)
            turn = 0
            while True:
                turn += 1
                mine.enter(paths[turn % 2], turn)
                mine.applied(turn)
        finally:
            os._exit(1)
    os.close(fd)
    try:
        last = 0
        for _ in range(20_000):
            status = page.read()
            assert status.path in (*paths, "")
            assert status.path in (paths[status.attempt % 2], "")
            assert status.attempt >= last
            last = status.attempt
        while page.read().applied < 1000:
            os.sched_yield()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    dead = page.read()
    assert dead.path == paths[dead.attempt % 2]
    assert dead.applied in (dead.attempt, dead.attempt - 1)
    page.close()


def test_closing_twice_is_harmless() -> None:
    page, fd = Page.create()
    os.close(fd)
    page.close()
    page.close()
    with pytest.raises(ValueError, match="released"):
        page.read()
