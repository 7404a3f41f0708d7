"""A worker's life, from its first frame to its exit code (see :mod:`.exits`)."""

import os
import signal
import sys

from caravela.errors import ProtocolError, StepRaised

from ..protocol import payload
from ..protocol.codec import Decoder
from ..protocol.messages import BootFailed, Crashed, Ready
from ..protocol.status import Page
from . import boot, exits
from .loop import Loop, text
from .pipe import Halted, HostGone, Pipe
from .tasks import TaskRunner


def run(
    reads: int, writes: int, page: int, *, decoder: Decoder | None = None, home: bool = False, halt: int | None = None
) -> int:
    """Runs one flow, on this thread, and returns the exit code. The fds stay the caller's.

    ``decoder``: a fresh one, made beforehand. ``home``: in the host's own process, of which then nothing is changed;
    where the host's end of a pipe is closed, or ``halt`` becomes readable, it returns. A worker in a process of its own
    dies there, with its group.
    """
    status = Page.attach(page)
    try:
        return _live(Pipe(reads, writes, decoder or Decoder("to_worker"), halt), status, home)
    except HostGone:
        if not home:
            os.killpg(0, signal.SIGKILL)
        return exits.HOST_GONE
    except Halted:
        return exits.HALTED
    except ProtocolError as error:
        sys.stderr.write(f"caravela worker: {error}\n")
        return exits.PROTOCOL
    finally:
        status.close()


def _live(pipe: Pipe, status: Page, home: bool) -> int:
    asked = boot.ask(pipe)
    try:
        booted = boot.load(asked, home=home)
        ready = Ready(booted.state, booted.flow.name, payload.encode(list(booted.flow.signals)))
    except BaseException as error:  # a user's module is loaded: it may even ask the interpreter to exit
        pipe.send(BootFailed(text(StepRaised.of(error))))
        pipe.finish()
        return exits.BOOT_FAILED
    pipe.send(ready)
    pipe.flush()
    tasks: TaskRunner | None = None
    try:
        tasks = TaskRunner()
        return Loop(pipe, status, tasks, booted, asked.later).run()
    except (HostGone, Halted, ProtocolError):
        raise
    except BaseException as error:  # not the flow's fault, or out of memory
        pipe.send(Crashed(text(StepRaised.of(error))))
        pipe.finish()
        return exits.CRASHED
    finally:
        if home and tasks:
            tasks.close()
