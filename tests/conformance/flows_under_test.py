"""Flows and functions that a worker imports by name. Those of the test modules travel by value."""

from typing import Any

from gates import pass_gate

from caravela import Error, Ok, flow, run, wait_until

State = dict[str, Any]


# ------------------------------------------------------------------ signals


def put(state: State, key: str, value: Any) -> State:
    return state | {key: value}


def bump(state: State, by: int = 1) -> State:
    return state | {"n": state["n"] + by}


def append(state: State, item: Any) -> State:
    return state | {"items": [*state["items"], item]}


def finish(state: State) -> State:
    return state | {"done": True}


def refuse(state: State, *_: Any) -> State:
    state["touched"] = True
    raise ValueError("as told")


def hold(state: State, path: str) -> State:
    """A signal that takes its time, on the worker's loop."""
    pass_gate(path)
    return state


# ------------------------------------------------------------------ predicates and bodies


def is_done(state: State) -> bool:
    return bool(state.get("done"))


def work(state: State) -> Ok:
    """Waits at the gate that the state names."""
    pass_gate(state["gate"])
    return Ok(state | {"worked": True})


def give_up(state: State) -> Error:
    return Error({"gave": "up", "n": state["n"]})


# ------------------------------------------------------------------ flows


idle = flow("idle", wait_until(is_done), initial_state={"n": 0, "items": []}, signals={"bump": bump, "append": append})
working = flow("working", run(work), initial_state={"gate": "", "n": 0, "items": []})
failing = flow("failing", run(give_up), initial_state={"n": 7})


class Home:
    """A flow may stand inside a class."""

    inner = flow("inner", wait_until(is_done), initial_state={"n": 0})


def remembered() -> State:
    """As from a place outside of the flow."""
    return {"n": 41, "items": []}


def unreachable() -> State:
    raise ConnectionError("no database here")


not_a_flow = 3
