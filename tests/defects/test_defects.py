"""Each defect of the original, put back by replacing one function, turns its own case red and no other."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"defects_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CASES = load(HERE.parent / "flows" / "test_better_than_the_original.py")
NAMES = [name for name in vars(CASES) if name.startswith("test_")]
DEFECTS = [path for path in sorted(HERE.glob("*.py")) if not path.stem.startswith(("test_", "conftest"))]


def test_there_is_one_defect_for_each_case() -> None:
    assert len(NAMES) == 7
    assert sorted(load(path).CASE for path in DEFECTS) == sorted(NAMES)


@pytest.mark.parametrize("path", DEFECTS, ids=lambda path: path.stem)
def test_a_defect_turns_exactly_its_case_red(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    defect = load(path)
    red = []
    for name in NAMES:
        with monkeypatch.context() as patch:
            defect.install(patch)
            try:
                getattr(CASES, name)()
            except Exception as error:
                red.append((name, error))
    assert [name for name, _ in red] == [defect.CASE], red
