"""A host without a single descriptor to spare: opens a supervisor again and again, with one more each time."""

import json
import os
import resource
from typing import Any

from stubborn import idle

from caravela import Supervisor


def main() -> Any:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    before = sorted(os.listdir("/proc/self/fd"))
    supervisor = Supervisor(shutdown=1.0)
    refusals: list[str] = []
    held: list[int] = []
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        pass
    while True:
        try:
            supervisor.open()
            break
        except OSError as error:
            refusals.append(str(error.strerror))
            os.close(held.pop())
    for fd in held:
        os.close(fd)
    state = supervisor.start(idle).get_state()
    supervisor.close()
    return {"refusals": refusals, "state": state, "nothing left": sorted(os.listdir("/proc/self/fd")) == before}


print(json.dumps(main()))
