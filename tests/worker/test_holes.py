"""What the zygote does for the memory of its workers, before it freezes."""

import os
import subprocess
import sys

import pytest

from caravela.worker.zygote import _HOLES

PAGES = """
import sys
from caravela.worker import zygote

room = {size} - sys.getsizeof(b"")
kept = [bytes(room) for _ in range(1_000)]
del kept[::100]  # ten holes, on ten pages
zygote._fill_the_holes()
made = [bytes(room) for _ in range(8)]
print(len({{id(block) // 4096 for block in made}}))
"""
FILLED = "import sys; from caravela.worker import zygote as z; z._fill_the_holes(); print(sum(map(len, z._fillings)))"


def printed(code: str, **environment: str) -> int:
    """By a Python of its own: how many holes there are here depends on what ran before."""
    environment = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout)


@pytest.mark.parametrize("size", [48, 112, 512])
def test_what_is_made_afterwards_lies_close_together(size: int) -> None:
    assert printed(PAGES.format(size=size)) <= 2


def test_an_allocator_without_pools_costs_no_more_than_was_said() -> None:
    sizes = range(48, 513, 16)
    assert 0 < printed(FILLED, PYTHONMALLOC="malloc") <= _HOLES * len(sizes)
