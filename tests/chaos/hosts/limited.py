"""A host with few fds, also by its hard limit: starts flows until it is refused, then says what it saw."""

import json
import os
import resource
import sys
from typing import Any

from stubborn import idle

from caravela import BootError, FlowHandle, Supervisor


def open_fds() -> set[int]:
    """Asked one by one: to list the folder of them takes one, and there may be none."""
    return {fd for fd in range(256) if is_open(fd)}


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def fill(supervisor: Supervisor) -> tuple[list[FlowHandle], str]:
    handles: list[FlowHandle] = []
    while True:
        try:
            handles.append(supervisor.start(idle))
        except BootError as refusal:
            return handles, str(refusal)


def main(limit: int) -> Any:
    before = open_fds()
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    with Supervisor(shutdown=1.0) as supervisor:
        handles, first = fill(supervisor)
        held = len(open_fds())
        again = fill(supervisor)
        same = len(open_fds()) == held and again[0] == []
        answers = [handle.update(lambda s: {"n": 1}) for handle in handles]
        handles[0].stop()
        room = supervisor.start(idle).get_state()
        assert supervisor._household
        children = [supervisor.count_children(), len(supervisor._household._by_key)]
    return {
        "started": len(handles),
        "refusals": [first, again[1]],
        "nothing leaked": same,
        "others": answers == [{"n": 1}] * len(handles),
        "after one was stopped": room,
        "children": children,
        "left": sorted(open_fds() - before),
    }


print(json.dumps(main(int(sys.argv[1]))))
