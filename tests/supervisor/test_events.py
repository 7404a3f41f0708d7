"""Events as users meet them: matched, compared, printed, pickled, made by hand in their tests."""

import pickle
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
from multiprocess.reduction import ForkingPickler

from caravela.errors import Cause, StepRaised, UndecodableState
from caravela.protocol import payload
from caravela.supervisor.events import (
    TERMINAL,
    Encoded,
    Event,
    FlowDone,
    FlowError,
    FlowRestarted,
    FlowStarted,
    FlowState,
    FlowStopped,
    Lagged,
    Progress,
    SignalRejected,
    StepEntered,
    how,
)

STATE = {"n": 1, "tags": {"a", "b"}, "at": (1, 2)}
COMMON: dict[str, Any] = {"flow_id": "books-1", "tag": ("shop", 7), "incarnation": 2, "seq": 5}


def encoded(value: Any) -> Encoded:
    return Encoded(payload.encode(value))


EVENTS: list[Event] = [
    FlowState(carried=encoded(STATE), **COMMON),
    FlowDone(carried=encoded(STATE), **COMMON),
    FlowStopped(carried=encoded(STATE), **COMMON),
    FlowStopped(carried=None, **COMMON),
    FlowError(carried=encoded("no such book"), **COMMON),
    FlowError(carried=Cause("signal", "SIGKILL"), **COMMON),
    FlowStarted(pid=17, **COMMON),
    FlowRestarted(cause=Cause("signal", "SIGSEGV", "run[1]", 2), lost_signals=3, **COMMON),
    SignalRejected(error=StepRaised("ValueError", "no"), late=True, **COMMON),
    StepEntered(path="repeat/run[1]", attempt=2, **COMMON),
    Progress(done=1, total=2, **COMMON),
    Lagged(n=3, **COMMON),
]


class Fragile:
    """A state that this process cannot read: to load it raises what ``match`` would swallow."""

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (object(), "is_not_there")


BROKEN = pickle.dumps(Fragile(), protocol=5)


def test_match() -> None:
    match EVENTS[0]:
        case FlowDone() | FlowError():
            pytest.fail("another event")
        case FlowState({"n": n}, flow_id=flow_id, tag=(_, number), incarnation=2, seq=5):
            assert (n, flow_id, number) == (1, "books-1", 7)
        case _:
            pytest.fail("not matched")
    match EVENTS[5]:
        case FlowError(Cause("signal", detail)):
            assert detail == "SIGKILL"
        case _:
            pytest.fail("not matched")
    match FlowError("no such book"):
        case FlowError("no such book"):
            pass
        case _:
            pytest.fail("not matched")


def test_isinstance() -> None:
    assert all(isinstance(event, Event) for event in EVENTS)
    assert isinstance(FlowDone({}), TERMINAL) and not isinstance(FlowState({}), TERMINAL)
    assert not isinstance(FlowDone({}), FlowState)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_survives_pickling(event: Event) -> None:
    """Also by what ``multiprocess.Queue`` pickles with."""
    for data in (*(pickle.dumps(event, protocol) for protocol in range(2, 6)), bytes(ForkingPickler.dumps(event))):
        copy = pickle.loads(data)
        assert type(copy) is type(event) and copy == event and repr(copy) == repr(event)
        assert (copy.flow_id, copy.tag, copy.incarnation, copy.seq) == tuple(COMMON.values())


def test_pickling_does_not_decode() -> None:
    """A queue's feeder thread must not run the user's code, and what this process cannot read another may."""
    event = FlowState(carried=Encoded(BROKEN))
    copy = pickle.loads(pickle.dumps(event))
    with pytest.raises(UndecodableState):
        _ = copy.state


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_is_frozen(event: Event) -> None:
    for field in fields(event):
        with pytest.raises(FrozenInstanceError):
            setattr(event, field.name, None)
    with pytest.raises((AttributeError, TypeError)):
        event.other = 1  # type: ignore[attr-defined]


def test_made_by_hand() -> None:
    for kind in (FlowState, FlowDone, FlowStopped):
        assert kind({"n": 1}, flow_id="f") == kind(state={"n": 1}, flow_id="f")
        assert kind(state={"n": 1}).state == {"n": 1}
    assert FlowError(reason="no").reason == FlowError("no").reason == "no"
    assert FlowDone().state is None and FlowState().seq == 0 and FlowState().incarnation == 1
    with pytest.raises(TypeError):
        FlowState({}, colour="red")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        FlowState({}, "books-1")  # type: ignore[misc]


def test_what_came_equals_what_was_made_by_hand() -> None:
    assert EVENTS[0] == FlowState(STATE, **COMMON) and FlowState(STATE, **COMMON) == EVENTS[0]
    assert EVENTS[0] != FlowState({"n": 2}, **COMMON)
    assert EVENTS[0] != FlowState(STATE) and EVENTS[0] != FlowDone(STATE, **COMMON)
    assert EVENTS[4] == FlowError("no such book", **COMMON)
    assert [FlowState(carried=encoded({"n": 1})), FlowDone({"n": 1})] == [FlowState({"n": 1}), FlowDone({"n": 1})]


def test_equal_states_of_different_bytes_are_equal() -> None:
    one, other = encoded({"a": 1, "b": 2}), encoded({"b": 2, "a": 1})
    assert pickle.dumps(one) != pickle.dumps(other) and one == other


def test_hash_goes_with_equality() -> None:
    assert hash(FlowError(carried=encoded("no"))) == hash(FlowError("no"))
    with pytest.raises(TypeError, match="unhashable type: 'dict'"):
        hash(FlowState({"n": 1}))


def test_replace() -> None:
    assert replace(EVENTS[0], seq=6) == FlowState(STATE, **{**COMMON, "seq": 6})


def test_repr() -> None:
    assert repr(FlowState(carried=encoded({"n": 1}), flow_id="f", seq=2)) == (
        "FlowState({'n': 1}, flow_id='f', incarnation=1, seq=2)"
    )
    assert repr(FlowError("no", flow_id="f")) == "FlowError('no', flow_id='f', incarnation=1, seq=0)"
    assert "pid=17" in repr(EVENTS[6])


def test_repr_of_what_cannot_be_decoded() -> None:
    assert "cannot be decoded" in repr(FlowState(carried=Encoded(BROKEN)))


def test_what_cannot_be_decoded_is_never_an_attribute_error() -> None:
    event = FlowState(carried=Encoded(BROKEN))

    def matched() -> bool:
        match event:
            case FlowState(_):
                return True
            case _:
                return False

    with pytest.raises(UndecodableState, match="AttributeError"):
        matched()


def test_a_pickle_that_is_not_trusted() -> None:
    event = FlowState(carried=Encoded(payload.encode(object), "data"))
    for one in (event, event.for_another(), pickle.loads(pickle.dumps(event))):
        with pytest.raises(UndecodableState, match="not trusted"):
            _ = one.state


def test_decoded_once_for_one_reader() -> None:
    event = FlowState(carried=encoded({"n": 1}))
    assert event.state is event.state


def test_another_reader_has_its_own() -> None:
    event = FlowState(carried=encoded({"n": 1}), **COMMON)
    other = event.for_another()
    assert other == event
    event.state["n"] = 2
    assert other.state == {"n": 1}


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (FlowDone({}), "it is done"),
        (FlowStopped({}), "it was stopped"),
        (FlowError(Cause("signal", "SIGKILL", "run[1]")), "it crashed: SIGKILL in run[1]"),
        (FlowError("no"), "it failed: no"),
        (None, "it is being stopped"),
    ],
)
def test_how(end: Any, words: str) -> None:
    assert how(end) == words
