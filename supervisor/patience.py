"""Threads that may not wait for a flow, because flows wait for them."""

import threading


class _Thread(threading.local):
    serving = False


this_thread = _Thread()
"""``serving``: it is a supervisor's loop, or a caller that reads what a worker says while it waits for an answer.

What such a thread calls, a queue's ``put`` or a log handler, may call the API again, but must not wait there.
"""


def check_may_wait(call: str) -> None:
    """``RuntimeError`` where ``call`` would wait for what only this thread can bring about."""
    if this_thread.serving:
        where = "a queue's put, a log or signal handler amid a call"
        raise RuntimeError(f"{call}: not from {where}: it would wait for itself")
