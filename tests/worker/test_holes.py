"""What the zygote does for the memory of its workers, before it freezes."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from caravela.worker import zygote

PAGE = 4096


@pytest.fixture(autouse=True)
def fillings() -> Iterator[list[bytes]]:
    yield zygote._fillings
    zygote._fillings.clear()


@pytest.mark.parametrize("size", [48, 112, 512])
def test_what_is_made_afterwards_lies_close_together(size: int) -> None:
    room = size - sys.getsizeof(b"")
    kept = [bytes(room) for _ in range(1_000)]
    del kept[::100]  # ten holes, on ten pages
    zygote._fill_the_holes()
    made = [bytes(room) for _ in range(8)]
    assert len({id(block) // PAGE for block in made}) <= 2


def test_an_allocator_without_pools_costs_no_more_than_was_said(fillings: list[bytes]) -> None:
    code = (
        "import sys\nfrom caravela.worker import zygote\nzygote._fill_the_holes()\n"
        "print(sum(map(sys.getsizeof, zygote._fillings)), zygote._HOLES * 30)"
    )
    environment = {**os.environ, "PYTHONMALLOC": "malloc"}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    filled, most = map(int, printed.stdout.split())
    assert filled <= most
    assert not fillings
