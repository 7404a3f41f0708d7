"""What README shows, run as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 4


@pytest.mark.parametrize("example", EXAMPLES, ids=["first flow", "starting", "asyncio", "testing"])
@pytest.mark.parametrize("way", ["script", "stdin", "-m", "-c"])
def test_example_runs(example: str, way: str, tmp_path: Path) -> None:
    (tmp_path / "my script.py").write_text(example, encoding="utf-8")
    (tmp_path / "my_module.py").write_text(example, encoding="utf-8")
    what = {"script": ["my script.py"], "stdin": ["-"], "-m": ["-m", "my_module"], "-c": ["-c", example]}[way]
    text = example if way == "stdin" else ""
    command = [sys.executable, *what]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=15, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    if "SimpleQueue" in example:
        (shown,) = re.findall(r"^```\n(\{.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        assert done.stdout.splitlines()[1:] == shown.splitlines()[1:]  # the first is the state of just that moment
    if "asyncio" in example:
        assert done.stdout.splitlines()[-1] == "{'n': 3}" and done.stdout.count("FlowState(") == 3
    if "lottery" in example:
        assert re.fullmatch(r"\{'go': True, 'up_to': 6, 'number': [0-5]\}\n", done.stdout)


def test_first_flow_is_short() -> None:
    assert len([line for line in EXAMPLES[0].splitlines() if line.strip()]) <= 20
