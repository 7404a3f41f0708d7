"""What the command line runs in its tests."""

import os
import signal
from typing import Any

from caravela import Error, flow, repeat, run, set_state, wait, wait_until

State = dict[str, Any]


def bump(state: State) -> State:
    return state | {"n": state["n"] + 1}


def soil(state: State) -> State:
    return state | {"dirty": True}


def clean(state: State) -> State:
    return state | {"dirty": False}


def is_dirty(state: State) -> bool:
    return bool(state["dirty"])


def give_up(state: State) -> Error:
    return Error(f"no luck with {state['n']}")


def crash(state: State) -> State:
    raise RuntimeError("boom")


def die(state: State) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(state: State) -> None:
    signal.pause() if state["politely"] else endless()


def endless() -> None:
    while True:
        pass


def from_the_environment() -> State:
    return {"n": 41, "made": "in the worker"}


quick = flow("quick", set_state(bump), set_state(bump), initial_state={"n": 0})
tidy = flow(
    "tidy",
    repeat(wait_until(is_dirty), set_state(clean)),
    initial_state={"dirty": False, "book_id": None},
    signals={"soil": soil},
)
made = flow("made", set_state(bump), initial_state=from_the_environment)
fails = flow("fails", run(give_up), initial_state={"n": 7})
crashes = flow("crashes", set_state(crash), initial_state={})
dies = flow("dies", run(die), initial_state={})
stubborn = flow("stubborn", run(hang), initial_state={"politely": False})
odd = flow("odd", set_state(lambda state: {1, 2}), initial_state={"when": float("nan"), ("a", "b"): b"bytes"})
never = flow("never", repeat(wait(1_000)), wait(5), run(crash), initial_state={})
