"""A host that forks, and whose child ends as the first argument says; then its flows must still be all right."""

import json
import os
import sys
from typing import Any

import multiprocess
from stubborn import idle

from caravela import FlowStopped, Supervisor


def say(what: Any) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def end_here(end: str) -> None:
    match end:
        case "os._exit":
            os._exit(5)
        case "sys.exit":
            sys.exit(5)
        case "raise":
            os.close(2)
            raise RuntimeError("in the child")
        case "return":
            return
    raise AssertionError(end)


def main(end: str) -> None:
    with Supervisor() as supervisor:
        handle = supervisor.start(idle)
        pid = handle.pid
        if end == "multiprocess":
            child = multiprocess.get_context("fork").Process(target=print, args=("a child",))
            child.start()
            child.join()
            code = child.exitcode
        else:
            forked = os.fork()
            if not forked:
                end_here(end)
                return
            code = os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])
        answer = handle.update(lambda s: {"alive": True})
        say({"code": code, "answer": answer, "same": handle.pid == pid, "incarnation": handle.incarnation})
        end_of_flow = handle.stop()
        say({"end": type(end_of_flow).__name__, "stopped": isinstance(end_of_flow, FlowStopped)})


main(sys.argv[1])
