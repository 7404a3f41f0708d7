"""A worker's life, from its first frame to its exit code (see :mod:`.exits`)."""

import os
import signal
import sys
from contextlib import suppress
from functools import partial

from caravela.errors import ProtocolError, StepRaised

from ..protocol import payload
from ..protocol.codec import Decoder
from ..protocol.messages import BootFailed, Crashed, Ready
from ..protocol.status import Page
from . import boot, clones, exits
from .loop import Loop, text
from .pipe import TORN, Halted, HostGone, Pipe
from .tasks import TaskRunner


def run(
    reads: int, writes: int, page: int, *, decoder: Decoder | None = None, home: bool = False, halt: int | None = None
) -> int:
    """Runs one flow, on this thread, and returns the exit code.

    ``decoder``: a fresh one, made beforehand. ``home``: in the host's own process, of which then nothing is changed,
    and the fds stay the caller's; where the host's end of a pipe is closed, or ``halt`` becomes readable, it returns. A
    worker in a process of its own dies there, with its group.
    """
    status = Page.attach(page)
    if not home:
        os.close(page)  # the mapping has a duplicate
    try:
        return _live(Pipe(reads, writes, decoder or Decoder("to_worker"), halt), status, home)
    except HostGone:
        if not home:
            os.killpg(0, signal.SIGKILL)
        return exits.HOST_GONE
    except Halted:
        return exits.HALTED
    except ProtocolError as error:
        _complain(error)
        return exits.PROTOCOL
    except OSError as error:  # of the pipe, which therefore did not take it
        _complain(error)
        return exits.CRASHED
    finally:
        status.close()


def _live(pipe: Pipe, status: Page, home: bool) -> int:
    asked = boot.ask(pipe)
    try:
        booted = boot.load(asked, home=home)
        ready = Ready(booted.state, booted.flow.name, payload.encode(list(booted.flow.signals)))
    except BaseException as error:  # a user's module is loaded: it may even ask the interpreter to exit
        clones.came_back(pipe.born, error)
        pipe.send(BootFailed(text(StepRaised.of(error))))
        pipe.finish()
        return exits.BOOT_FAILED
    clones.came_back(pipe.born)
    pipe.send(ready)
    pipe.flush()
    tasks: TaskRunner | None = None
    loop: Loop | None = None
    try:
        tasks = TaskRunner(partial(_unheard, pipe, home))
        loop = Loop(pipe, status, tasks, booted, asked.later)
        return loop.run()
    except (HostGone, Halted, ProtocolError):
        raise
    except BaseException as error:  # no memory, a descriptor closed in here; what a signal handler of the user's raises
        clones.came_back(pipe.born, error)
        where = loop.position if loop else ("", 0)
        told = StepRaised.of(error, *where)
        pipe.send(Crashed(text(told)))
        try:
            pipe.finish()
        except OSError:  # the pipe is what was closed
            _complain(told)
        return exits.CRASHED
    finally:
        if home and tasks:
            tasks.close()


def _unheard(pipe: Pipe, home: bool, path: str, attempt: int) -> None:
    """On the thread of a body that closed what wakes the loop: nothing else tells the loop that it has to end."""
    if home:
        pipe.torn = True
        if pipe.halt is not None:
            with suppress(OSError):  # closed too; the loop finds out when the host next writes to it
                os.eventfd_write(pipe.halt, 1)
        return
    error = StepRaised("OSError", TORN, "", path, attempt)
    if not pipe.cry(Crashed(text(error))):
        _complain(error)
    for stream in (sys.stdout, sys.stderr):
        with suppress(BaseException):
            stream.flush()
    os._exit(exits.CRASHED)


def _complain(error: object) -> None:
    with suppress(BaseException):  # there may be no stderr any more
        sys.stderr.write(f"caravela worker: {error}\n")
