"""Arguments in, exit code out."""

import argparse
import io
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, get_args

from caravela.errors import CaravelaError

from ..flows.outcomes import UNSET
from ..supervisor.spec import Restart
from .check import check
from .codes import CANNOT_START, DONE, FAILED, INTERRUPTED, NOBODY_READS, USAGE
from .lines import Json, Readable
from .run import Order, run
from .targets import BadTarget, Target

TARGET: Final = "package.module:flow, or path/to/file.py:flow; without a name the only flow of its module"
CODES: Final = """\
exit codes: 0 done (check: all is well), 1 failed or crashed too often (check: something is not), 2 wrong arguments or
no such flow, 3 cannot start, 124 stopped by --timeout, 130 stopped by Ctrl-C, 143 stopped by SIGTERM"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. ``SystemExit`` comes from wrong arguments and ``--help``."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that has no sign for it
    given = _parser().parse_args(arguments)
    try:
        return int(given.command(given))
    except BadTarget as error:
        print(f"caravela: {error}", file=sys.stderr)
        return USAGE
    except CaravelaError as error:
        print(f"caravela: {error}", file=sys.stderr)
        return CANNOT_START
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="caravela",
        description="Ephemeral workflows, each in a process of its own.",
        epilog=CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    one = _command(commands, "run", _run, "start a flow and write what it announces, until it ends")
    state = "the first state; an object is laid over the one that the flow declares; @file reads it from there"
    one.add_argument("--state", type=_json, default=UNSET, metavar="JSON", help=state)
    one.add_argument("--signal", action="append", default=[], metavar="NAME", help="send a declared signal first")
    one.add_argument("--restart", choices=get_args(Restart), default="transient", help="default: transient")
    grace = "that it has to stop in before it is killed; default: 5"
    one.add_argument("--shutdown", type=_seconds, default=5.0, metavar="SECONDS", help=grace)
    one.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="after which it is stopped")
    one.add_argument("--steps", action="store_true", help="also write each step that it enters")
    one.add_argument("--json", action="store_true", help="write a JSON object a line")

    _command(commands, "check", _check, "import a flow and say what would go wrong; runs no step")

    one = _command(commands, "show", _show, "draw a flow")
    one.add_argument("--mermaid", action="store_true", help="as a Mermaid flowchart")
    return parser


def _command(commands: Any, name: str, do: Callable[[argparse.Namespace], int], what: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    parser.add_argument("target", metavar="TARGET", help=TARGET)
    parser.set_defaults(command=do)
    return parser


def _json(text: str) -> Any:
    try:
        return json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text[1:]}: {error.strerror}") from None
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"no JSON: {error}") from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds


def _run(given: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    order = Order(
        Target.of(given.target),
        given.state,
        tuple(given.signal),
        given.restart,
        given.shutdown,
        given.timeout,
        given.steps,
    )
    return run(order, Json(sys.stdout) if given.json else Readable(sys.stdout))


def _check(given: argparse.Namespace) -> int:
    wrong = False
    try:
        for finding in check(Target.of(given.target)):
            print(f"{'✓' if finding.right else '✗'} {finding.text}")
            wrong = wrong or not finding.right
    except (BadTarget, CaravelaError, KeyboardInterrupt):
        raise
    except BaseException:  # the module's own, at its import
        print(f"✗ {given.target} cannot be imported", flush=True)
        traceback.print_exc()
        return FAILED
    return FAILED if wrong else DONE


def _show(given: argparse.Namespace) -> int:
    _, flow = Target.of(given.target).load()
    print(flow.mermaid() if given.mermaid else flow)
    return DONE
