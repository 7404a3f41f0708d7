"""``python -m examples.books [--seed N]``: exit code 0 when everything agrees, 1 when not, 130 after Ctrl-C."""

import argparse
import io
import os
import signal
import sys
import tempfile
from pathlib import Path

from .job import Failed, work
from .report import summary
from .screen import Screen


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.books", description="Import 350 books, kill the import, edit five."
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="what goes wrong when, and which books are edited (default 1)"
    )
    parser.add_argument("--once", action="store_true", help="run once and end, which it always does")
    arguments = parser.parse_args()

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has no ✓ gets a ?
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # unwinds, so that nothing is left
    screen = Screen(sys.stdout)
    try:
        with tempfile.TemporaryDirectory(prefix="caravela-books-") as folder:
            figures = work(arguments.seed, screen, Path(folder))
        return 0 if summary(figures, screen) else 1
    except Failed as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read our lines has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


if __name__ == "__main__":
    sys.exit(main())
