"""Why an incarnation ended: what is known of it, where it stood, and the reason of a permanent flow that failed."""

import pickle
from dataclasses import replace
from typing import Any

import pytest

from caravela.errors import Cause, FlowCrashed, StepRaised, UndecodableState
from caravela.protocol import messages, payload
from caravela.supervisor.core import (
    BootFailed,
    Broken,
    Child,
    Crashed,
    Ended,
    Event,
    Exited,
    Launch,
    Launched,
    LaunchFailed,
    Phase,
    Ready,
    StartAsked,
    StopAsked,
    Tick,
    Up,
)
from caravela.supervisor.events import Encoded, FlowError, FlowRestarted, how
from caravela.supervisor.spec import Policy

REASON = {"code": 3}
FAILED = messages.Failed(3, payload.encode(REASON))
DONE = messages.Done(3, payload.encode({}))
GONE = Cause("exit", "exit code 0", "repeat/run[1]", 2)
PLACELESS = StepRaised("ValueError", "no")
SPENT = "max_restarts=3 within 5 s are spent"


def started(restart: Any = "transient", **policy: Any) -> Child:
    child = Child(Policy(restart, **policy))
    assert child.advance(StartAsked(), 0.0) == [Launch()]
    assert child.advance(Launched(), 0.0) == []
    return child


def running(restart: Any = "transient", **policy: Any) -> Child:
    child = started(restart, **policy)
    assert child.advance(Ready(), 0.0) == [Up(None)]
    return child


# ------------------------------------------------------------------ where it stood


@pytest.mark.parametrize("said", [Ended(DONE), Ended(FAILED), Crashed(PLACELESS), Broken("no message")], ids=repr)
def test_the_status_page_says_where_it_stood(said: Event) -> None:
    child = running("permanent")
    child.advance(said, 0.0)
    child.advance(Exited(GONE), 0.0)
    assert child.cause and (child.cause.path, child.cause.attempt) == (GONE.path, GONE.attempt)
    assert child.cause.kind != GONE.kind


def test_also_of_a_boot_that_took_too_long() -> None:
    child = started()
    child.advance(Tick(), 10.0)
    child.advance(Exited(GONE), 10.0)
    assert child.cause == Cause("boot", "not ready within 10 s", GONE.path, GONE.attempt)


def test_what_the_worker_said_of_the_place_counts() -> None:
    child = running()
    child.advance(Crashed(replace(PLACELESS, path="set_state", attempt=1)), 0.0)
    child.advance(Exited(GONE), 0.0)
    assert child.cause and (child.cause.path, child.cause.attempt) == ("set_state", 1)


# ------------------------------------------------------------------ how it stands


@pytest.mark.parametrize("gone", [Exited(GONE), LaunchFailed("EAGAIN")], ids=repr)
def test_a_first_boot_is_no_restart(gone: Event) -> None:
    child = started()
    assert child.status == "starting"
    child.advance(BootFailed(PLACELESS), 0.0)
    assert child.phase is Phase.LEAVING and child.status == "starting"
    child.advance(gone, 0.0)


def test_a_later_one_is() -> None:
    child = running()
    child.advance(Exited(GONE), 0.0)
    assert child.status == "restarting"
    child.advance(BootFailed(PLACELESS), 0.0)
    assert child.status == "restarting"


def test_ready_while_it_is_stopped_is_not_up() -> None:
    child = started()
    child.advance(StopAsked(5.0), 0.0)
    assert child.advance(Ready(), 0.0) == [] and not child.ever_up and child.up


# ------------------------------------------------------------------ the reason of a permanent flow


def failed(**more: Any) -> Cause:
    return Cause("ended", "failed", carried=Encoded(FAILED.reason), **more)


def test_a_permanent_flow_that_fails_keeps_its_reason() -> None:
    child = running("permanent", max_restarts=0)
    child.advance(Ended(FAILED), 0.0)
    child.advance(Exited(GONE), 0.0)
    assert child.cause is not None
    assert child.cause.reason == REASON
    assert str(child.cause) == ("failed: {'code': 3} in repeat/run[1]; max_restarts=0 within 5 s are spent")


def test_nothing_is_decoded_before_somebody_looks() -> None:
    child = running("permanent", max_restarts=0)
    child.advance(Ended(messages.Failed(3, b"\x80nonsense")), 0.0)
    child.advance(Exited(GONE), 0.0)
    cause = child.cause
    assert cause is not None and hash(cause)
    assert str(cause).startswith("failed: a reason that cannot be shown (UndecodableState) in repeat/run[1]; ")
    with pytest.raises(UndecodableState):
        _ = cause.reason


def test_each_look_has_its_own_copy() -> None:
    cause = failed()
    cause.reason["code"] = 4
    assert cause.reason == REASON


def test_its_trust_is_the_flows() -> None:
    child = running("permanent", max_restarts=0, trust="data")
    child.advance(Ended(messages.Failed(3, payload.encode(Child))), 0.0)
    child.advance(Exited(GONE), 0.0)
    assert child.cause is not None
    with pytest.raises(UndecodableState, match="not trusted"):
        _ = child.cause.reason


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_a_reason_without_a_text() -> None:
    cause = Cause("ended", "failed", carried=Encoded(payload.encode(Hostile())))
    assert str(cause) == "failed: a reason that cannot be shown (RuntimeError)"


def test_a_reason_that_names_its_place_names_it_once() -> None:
    reason = StepRaised("ValueError", "no", path="repeat/run[1]", attempt=2)
    cause = Cause("ended", "failed", "repeat/run[1]", 2, carried=Encoded(payload.encode(reason)))
    assert str(cause) == "failed: ValueError: no in repeat/run[1], attempt 2"


def test_it_travels() -> None:
    cause = failed(spent=SPENT)
    for copy in (pickle.loads(pickle.dumps(cause)), payload.decode(payload.encode(cause))):
        assert copy == cause and hash(copy) == hash(cause) and copy.reason == REASON
    error = pickle.loads(pickle.dumps(FlowCrashed("f", cause, "")))
    assert error == FlowCrashed("f", cause, "") and "failed: {'code': 3}" in str(error)
    event = pickle.loads(pickle.dumps(FlowRestarted(cause=cause)))
    assert event.cause.reason == REASON
    plain = Cause("signal", "SIGKILL")
    assert plain.reason is None and payload.decode(payload.encode(plain), trust="data") == plain


def test_how_it_ended_in_words() -> None:
    told = f"it ended too often: failed: {{'code': 3}}; {SPENT}"
    assert how(FlowError(failed(spent=SPENT))) == told
    assert how(FlowError(Cause("ended", "finished", spent=SPENT))) == f"it ended too often: finished; {SPENT}"
