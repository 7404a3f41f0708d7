"""Reading and replacing one key of a state: of a mapping, or a field of an object."""

import sys
from collections.abc import MutableMapping
from dataclasses import is_dataclass, replace
from typing import Any


def get_key(state: Any, key: str) -> Any:
    return state[key] if isinstance(state, MutableMapping) else getattr(state, key)


def with_key(state: Any, key: str, value: Any) -> Any:
    """The state with ``key`` set. The state given is the caller's own copy and may be changed on the way.

    Frozen kinds (dataclass, NamedTuple, attrs, pydantic, msgspec) are replaced by their own means.
    """
    if isinstance(state, MutableMapping):
        state[key] = value
        return state
    kind = type(state)
    if hasattr(kind, "_replace"):  # NamedTuple
        return state._replace(**{key: value})
    if is_dataclass(kind):
        return replace(state, **{key: value})
    # Whoever made the state has imported its library: nothing is imported here.
    if hasattr(kind, "__attrs_attrs__"):
        return sys.modules["attr"].evolve(state, **{key: value})
    if hasattr(kind, "model_copy"):  # pydantic
        return state.model_copy(update={key: value})
    if hasattr(kind, "__struct_fields__"):
        return sys.modules["msgspec"].structs.replace(state, **{key: value})
    setattr(state, key, value)
    return state
