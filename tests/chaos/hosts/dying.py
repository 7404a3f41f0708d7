"""A host with flows that are hard to end: reports their processes, then ends as its first argument says.

argv: the end, and the supervisor's grace. Lines of JSON go to stdout: the processes, then each terminal event.
"""

import json
import os
import signal
import sys
from contextlib import ExitStack
from typing import Any

from stubborn import deaf, idle, mother, spinner

import caravela
from caravela import FlowDone, FlowError, FlowStopped, FlowTimeout, Supervisor
from caravela.supervisor.subscribers import Subscription


def say(what: Any) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def main(end: str, grace: float) -> None:
    if os.isatty(0):
        os.close(os.open(os.ttyname(0), os.O_RDWR))  # the leader of a session: now this is its terminal
    with ExitStack() as afterwards, Supervisor(shutdown=grace) as supervisor:
        ends = supervisor.subscribe(kinds=(FlowDone, FlowError, FlowStopped))
        afterwards.callback(tell, ends)
        handles = [supervisor.start(flow) for flow in (idle, mother, deaf)]
        handles.append(spinning := supervisor.start(spinner))
        mothers = handles[1].subscribe()
        while not (state := handles[1].get_state()):
            mothers.get()
        mothers.close()
        while not handles[2].get_state():
            pass
        say({"pids": [handle.pid for handle in handles], "grandchildren": state["grandchildren"]})
        say({"spins": holds_the_interpreter(spinning)})
        die(end)


def tell(ends: Subscription) -> None:
    ends.close()
    for event in ends:
        say({"end": type(event).__name__, "flow": event.flow_id})


def holds_the_interpreter(handle: Any) -> str:
    """A worker answers within milliseconds while its body runs Python; so one that does not is held by C code."""
    while True:
        try:
            handle.get_state(timeout=0.3)
        except FlowTimeout as timeout:
            return timeout.doing


def wait_for_a_signal() -> None:
    """One that comes just before a ``signal.pause()`` would not end it."""
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    signal.set_wakeup_fd(writes)
    while True:
        os.read(reads, 1)


def die(end: str) -> None:
    if end not in ("wait", "fork"):  # those wait to be killed, the others to be looked at
        os.read(0, 1)
    match end:
        case "wait":
            wait_for_a_signal()
        case "os._exit":
            os._exit(3)
        case "raise":
            raise RuntimeError("uncaught")
        case "sys.exit":
            sys.exit(4)
        case "fork":
            if child := os.fork():
                say({"child": child})
            wait_for_a_signal()
    raise AssertionError(end)


def unsupervised() -> None:
    """Such flows have nobody but the end of the interpreter."""
    handles = [caravela.start(idle), caravela.start(mother)]
    while not (state := handles[1].get_state()):
        pass
    say({"pids": [handle.pid for handle in handles], "grandchildren": state["grandchildren"]})


if sys.argv[1] == "unsupervised":
    unsupervised()
else:
    main(sys.argv[1], float(sys.argv[2]))
