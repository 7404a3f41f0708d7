"""What a worker says is told in its order, although part of it must be told on the loop, and the rest is at once."""

from collections.abc import Callable

Work = Callable[[], None]


class Turns:
    """``post`` leaves work to the loop. The other methods are called by one thread at a time."""

    def __init__(self, post: Callable[[Work], None]) -> None:
        self._post = post
        self._posted = 0
        self._done = 0  # of those; counted by the loop's thread alone

    def now(self, work: Work) -> None:
        """In this thread, unless something that came before still waits for the loop."""
        if self._posted == self._done:
            work()
        else:
            self.on_loop(work)

    def on_loop(self, work: Work) -> None:
        def do() -> None:
            try:
                work()
            finally:
                self._done += 1

        self._posted += 1
        self._post(do)
