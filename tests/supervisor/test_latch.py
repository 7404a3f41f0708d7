"""A latch: set once, seen by all, and nobody's lock but one's own."""

import threading

from caravela.supervisor.latch import Latch

SOON = 8.0


def test_before_and_after() -> None:
    latch = Latch()
    assert not latch.is_set() and not latch.wait(0) and not latch.wait(0.001)
    latch.set()
    assert latch.is_set() and latch.wait(0) and latch.wait() and latch.wait(SOON)
    latch.set()


def test_who_gave_up_is_forgotten() -> None:
    latch = Latch()
    for _ in range(100):
        latch.wait(0)
    assert not latch._waiting


def test_all_are_let_go_whenever_they_come() -> None:
    for _ in range(200):
        latch = Latch()
        begin = threading.Barrier(5)
        seen: list[bool] = []

        def wait(latch: Latch = latch, begin: threading.Barrier = begin, seen: list[bool] = seen) -> None:
            begin.wait()
            seen.append(latch.wait(SOON))

        threads = [threading.Thread(target=wait, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        begin.wait()
        latch.set()
        for thread in threads:
            thread.join(SOON)
        assert seen == [True] * 4 and not latch._waiting
