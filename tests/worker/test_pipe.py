"""What leaves a worker when a signal handler of the user's raises amid the writing of it."""

import fcntl
import os
import sys
from collections.abc import Callable
from itertools import count
from types import FrameType

import pytest

from caravela.protocol.codec import Decoder, encode
from caravela.protocol.messages import Pong, Reply, ToSupervisor
from caravela.worker import pipe as pipe_module
from caravela.worker.pipe import Pipe

SENT: list[ToSupervisor] = [*(Pong(call) for call in range(100)), Reply(100, True, bytes(10_000)), Pong(101)]


def interrupted(error: OSError | ValueError, moment: int, call: Callable[[], object]) -> bool:
    """Raises ``error`` in the pipe's code at the ``moment``-th place where Python runs handlers of signals: where a
    function begins, and behind one in C. Whether there is such a place."""
    places = count(1)
    raised, came = False, None

    def profile(frame: FrameType, event: str, _: object) -> None:
        nonlocal raised
        ours = event in ("call", "c_return") and frame.f_globals is vars(pipe_module)
        if ours and next(places) == moment:
            raised = True
            raise error

    sys.setprofile(profile)
    try:
        call()
    except type(error) as caught:
        came = caught
    finally:
        sys.setprofile(None)
    assert came is (error if raised else None)
    return raised


@pytest.mark.parametrize("error", [ValueError, TimeoutError, BlockingIOError, BrokenPipeError])
def test_whatever_a_handler_raises_comes_out_and_no_byte_is_sent_twice(error: type[OSError | ValueError]) -> None:
    moment = 0
    for moment in count(1):
        nothing, reads, writes = os.open(os.devnull, os.O_RDONLY), *os.pipe()
        fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, 4096)
        pipe = Pipe(nothing, writes, Decoder("to_worker"))
        for message in SENT:
            pipe.send(message)
        raised = interrupted(error("of the user's"), moment, pipe.flush)
        came = b""
        while pipe.unsent:
            pipe.flush()
            came += os.read(reads, 65536)
        pipe.finish()
        for fd in (nothing, reads, writes):
            os.close(fd)
        assert came == b"".join(map(encode, SENT)), moment
        if not raised:
            break
    assert moment > 10
