"""From the first frame to ``Ready``: what the worker is, where it stands, which flow it runs, from which state."""

import importlib
import operator
import os
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from caravela.errors import ProtocolError

from ..flows.flow import Flow, is_factory
from ..protocol import payload
from ..protocol.messages import VERSION, Code, Define, Hello, Start, ToWorker
from ..protocol.mirror import Importer
from .pipe import Pipe

_WARNING: Final = 30  # logging's own default, without its import

known = b""
"""The surroundings of the zygote, as its host encodes them: while they are still the same, a comparison adopts them."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What came up to ``Start``. Nothing of it is loaded yet: that needs the environment which ``Start`` brings.

    ``later`` is what else came, in order: it is for the running flow (also a ``Stop``, which overtakes).
    """

    start: Start
    needs: list[Code | Define]
    later: deque[ToWorker]


@dataclass(frozen=True, slots=True)
class Booted:
    flow: Flow
    state: bytes
    importer: Importer
    interest: int


def ask(pipe: Pipe) -> Asked:
    """Answers ``Hello`` and reads up to ``Start``."""
    came = deque(pipe.await_input())
    match came.popleft():
        case Hello(version=version, nonce=nonce) if version == VERSION:
            pipe.send(Hello(VERSION, os.getpid(), nonce))  # goes with what comes next: nobody waits for it alone
        case other:
            raise ProtocolError(f"not a greeting of version {VERSION}: {other}")
    needs: list[Code | Define] = []
    later: deque[ToWorker] = deque()
    while True:
        while came:
            match came.popleft():
                case Start() as start:
                    return Asked(start, needs, later + came)
                case Code() | Define() as need:
                    needs.append(need)
                case other:
                    later.append(other)
        came.extend(pipe.await_input())


def load(asked: Asked, *, home: bool) -> Booted:
    """Raises whatever the user's module, or the making of the first state, raises."""
    start = asked.start
    if not home and start.environment != known:
        adopt(payload.decode(start.environment))
    importer = Importer(home)
    for need in asked.needs:
        if isinstance(need, Code):
            importer.code(need)
        else:
            importer.define(need)
    flow = _flow(importer.load(start.flow))
    state = importer.load(start.state) if start.state else flow.initial_state
    data = payload.encode(state() if is_factory(state) else state)
    canonical = payload.encode(payload.decode(data))  # a pickle of an unpickled value may differ from the first one
    return Booted(flow, canonical, importer, payload.decode(start.options)["interest"])


def _flow(named: Any) -> Flow:
    if not isinstance(named, str):
        found, named = named, "what was sent"
    else:
        module, colon, attribute = named.partition(":")
        if not (module and colon and attribute):
            raise ValueError(f'a flow is named as "package.module:attribute", not {named!r}')
        found = operator.attrgetter(attribute)(importlib.import_module(module))
    if not isinstance(found, Flow):
        raise TypeError(f"{named} is not a Flow but {found!r:.200}")
    return found


def surroundings() -> bytes:
    """This process's, as :func:`adopt` takes them, in the order in which a host encodes its own."""
    environment = {
        "path": sys.path,
        "cwd": _cwd(),
        "environ": dict(os.environ),
        "argv": sys.argv,
        "log_level": _WARNING,
    }
    return payload.encode(environment)


def adopt(environment: Mapping[str, Any]) -> None:
    """The host's surroundings as they are now, where they differ: what is only rewritten costs pages of its own."""
    if sys.path != environment["path"]:
        sys.path[:] = environment["path"]
        importlib.invalidate_caches()
    if environment["cwd"] not in ("", _cwd()):
        os.chdir(environment["cwd"])
    environ = environment["environ"]
    for name in os.environ.keys() - environ.keys():
        del os.environ[name]
    for name, value in environ.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    sys.argv[:] = environment["argv"]
    if environment["log_level"] != _WARNING:
        import logging

        logging.getLogger().setLevel(environment["log_level"])


def _cwd() -> str:
    """Empty when somebody removed it; then the host stands nowhere, and so does its worker."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""
