"""What a fork of a worker does that comes out of code of the user's: it ends, as that code ended.

``os.fork()`` in a body or a signal returns twice, and both come back into the worker's own code. The parent is the
worker; the clone has copies of its pipes, its page and its eventfds, and must touch none of them. Processes that never
come back (of ``multiprocessing``, of ``subprocess``) are never here.
"""

import os
import sys
from contextlib import suppress
from typing import NoReturn

from caravela.errors import StepRaised

generation = 0
"""Of this process, which counts the forks that led to it: a look at it costs 30 ns, one at ``os.getpid`` 200 to 400."""


def _next() -> None:
    global generation
    generation += 1


os.register_at_fork(after_in_child=_next)


def came_back(born: int, ended: BaseException | StepRaised | None = None) -> None:
    """To be called after code of the user's, before anything of the worker's is touched.

    ``born``: the generation in which the worker began.
    """
    if generation != born:
        leave(ended)


def leave(ended: BaseException | StepRaised | None) -> NoReturn:
    """Ends this process with the exit code of a script that ended so, without atexit handlers: those are the parent's.

    ``ended``: what came out of the user's code, None where it returned.
    """
    code, words = _judge(ended)
    with suppress(BaseException):
        if words:
            sys.stderr.write(f"{words}\n")
    for stream in (sys.stdout, sys.stderr):
        with suppress(BaseException):
            if stream.line_buffering:  # else, in the inline engine, it may hold what the host has not yet printed
                stream.flush()
    os._exit(code)


def _judge(ended: BaseException | StepRaised | None) -> tuple[int, str]:
    match ended:
        case None | SystemExit(code=None) | StepRaised(type="SystemExit", message="" | "None" | "False"):
            return 0, ""
        case SystemExit(code=int(code)):
            return code & 0xFF, ""
        case SystemExit(code=words):
            return 1, _text(words)
        case StepRaised(type="SystemExit", message=message):  # only its text is left of it
            return (int(message) & 0xFF, "") if message.removeprefix("-").isdecimal() else (1, message)
        case StepRaised(traceback=trace):
            return 1, trace
        case _:
            return 1, StepRaised.of(ended).traceback


def _text(words: object) -> str:
    try:
        return str(words)
    except BaseException:
        return ""
