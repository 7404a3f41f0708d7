"""The flow of the zygote's rehearsals: it is imported anew for each, as a user's module is in each worker."""

from typing import Any

from ..flows import flow, repeat, set_state, wait, wait_until


def cue(state: dict[str, Any]) -> dict[str, Any]:
    return state | {"cue": True}


played = flow(
    "rehearsal",
    wait_until(lambda state: state["cue"]),
    repeat(set_state(lambda state: state | {"said": True}), wait(60_000)),
    initial_state={"cue": False},
    signals={"cue": cue},
)
