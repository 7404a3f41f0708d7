"""The tests here share :mod:`witness`; it is found once, and this folder stays off ``sys.path``."""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
try:
    importlib.import_module("witness")
finally:
    del sys.path[0]
