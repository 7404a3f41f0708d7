"""``python -m caravela``: what there is of a command line."""

import sys


def main() -> int:
    print(
        "caravela has no command line yet; one comes with a later version. From Python: `import caravela`.",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
