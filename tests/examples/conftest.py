"""The examples are not installed: they are found from the root of the repository.

Only this import looks there. Afterwards ``examples.books`` is found through the package, and no other test sees the
root on ``sys.path``, where the tests' own modules would become importable.
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
try:
    importlib.import_module("examples.books")
finally:
    del sys.path[0]
