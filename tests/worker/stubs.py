"""Puts something else where NumPy's and PyTorch's generators would be."""

import sys
import types

sys.modules["numpy.random"] = types.ModuleType("numpy.random")
sys.modules["torch"] = None  # type: ignore[assignment]  # so an import of it is forbidden
