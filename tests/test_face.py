"""The public names: complete, sorted, all there, and the runtime's only when they are used."""

import subprocess
import sys

import pytest

import caravela
from caravela import errors, flows


def python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_all_is_sorted_and_holds_no_name_twice() -> None:
    assert caravela.__all__ == sorted(set(caravela.__all__))


def test_all_holds_every_error_and_every_name_to_write_flows_with() -> None:
    assert set(errors.__all__) <= set(caravela.__all__)
    assert set(flows.__all__) <= set(caravela.__all__)


@pytest.mark.parametrize("name", caravela.__all__)
def test_every_public_name_is_there(name: str) -> None:
    found = getattr(caravela, name)
    assert found.__name__ == name
    assert found.__doc__, f"{name} has no docstring"
    assert name in dir(caravela)


def test_the_import_loads_no_runtime() -> None:
    heavy = ["caravela.supervisor", "caravela.worker", "asyncio", "dill", "multiprocess", "msgpack", "psutil"]
    done = python("-c", f"import sys, caravela; print([name for name in {heavy} if name in sys.modules])")
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_a_star_import_gives_every_public_name() -> None:
    done = python("-c", "from caravela import *; import caravela; print(set(caravela.__all__) - set(globals()))")
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Suprevisor'"):
        _ = caravela.Suprevisor  # type: ignore[attr-defined]  # misspelt on purpose


def test_the_command_line_says_what_it_needs() -> None:
    done = python("-m", "caravela")
    assert done.returncode == 2
    assert "usage: caravela [-h] command" in done.stderr
    assert done.stdout == ""
