"""Values come back as they were, or do not leave; and what is refused is refused by name."""

import asyncio
import collections
import enum
import functools
import importlib
import io
import math
import pickle
import random
import shelve
import socket
import sqlite3
import sys
import tempfile
import threading
import tracemalloc
import weakref
import zoneinfo
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, SafeUUID, uuid1, uuid4

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caravela.errors import (
    AllFailed,
    Cause,
    InvalidOutcome,
    LimitExceeded,
    NotPortable,
    Reason,
    RetriesExhausted,
    StepRaised,
    StepTimedOut,
    UndecodableState,
)
from caravela.protocol import payload
from caravela.protocol.functions import export
from caravela.protocol.payload import PAYLOAD_LIMIT, ValueCodec, decode, encode

EXAMPLES = settings(max_examples=250, deadline=None, derandomize=True, database=None)


def same(one: Any, other: Any) -> bool:
    """Equal in value, type and order, all the way down; NaN is itself, 0.0 is not -0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            same(a, b) and same(one[a], other[b]) for a, b in zip(one, other, strict=True)
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, set | frozenset):
        return len(one) == len(other) and sorted(map(encode, one)) == sorted(map(encode, other))
    if isinstance(one, float):
        return math.copysign(1, one) == math.copysign(1, other) and (one == other or (one != one and other != other))
    if isinstance(one, complex):
        return same((one.real, one.imag), (other.real, other.imag))
    if isinstance(one, datetime | time):
        return repr(one) == repr(other) and one.fold == other.fold
    if isinstance(one, Reason):
        return same(one.args, other.args)
    if isinstance(one, Decimal):
        return str(one) == str(other)
    return bool(one == other)


def is_plain(data: bytes) -> bool:
    return data == b"\x80" or data[:1] != b"\x80"


# ------------------------------------------------------------------ there and back

offsets = st.timedeltas(timedelta(hours=-23), timedelta(hours=23))
zones = st.none() | st.just(UTC) | st.builds(timezone, offsets) | st.builds(timezone, offsets, st.text())
texts = st.text(st.characters())  # lone surrogates too
hashable_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | texts
    | st.binary()
    | st.complex_numbers()
    | st.datetimes(timezones=zones, allow_imaginary=True)
    | st.dates()
    | st.times(timezones=zones)
    | st.timedeltas()
    | zones
    | st.decimals().filter(lambda value: not value.is_snan())  # those are not hashable
    | st.uuids()
)
hashables = st.recursive(
    hashable_scalars,
    lambda inner: st.frozensets(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple),
    max_leaves=6,
)
values = st.recursive(
    hashables | st.sets(hashables, max_size=4) | st.binary().map(bytearray),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(hashables, inner, max_size=5)
        | st.builds(RetriesExhausted, st.integers(), inner)
        | st.builds(AllFailed, st.lists(inner, max_size=3))
    ),
    max_leaves=12,
)


@EXAMPLES
@given(values)
def test_plain_values_come_back_with_exactly_their_types_and_never_as_pickles(value: Any) -> None:
    data = encode(value)
    again = decode(data, trust="data")
    assert same(again, value)
    assert encode(again) == data


@EXAMPLES
@given(st.sets(hashables, max_size=12), st.randoms(use_true_random=False))
def test_equal_sets_give_equal_bytes(value: set[Any], draw: random.Random) -> None:
    shuffled = list(value)
    draw.shuffle(shuffled)
    fillers = {object() for _ in range(1000)}  # another table size, so another order
    rebuilt = set(fillers)
    rebuilt |= set(shuffled)
    rebuilt -= fillers
    assert encode(rebuilt) == encode(value)


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


class Point(NamedTuple):
    x: int
    y: int


@dataclass
class Book:
    title: str
    tags: list[str] = field(default_factory=list)
    sequel: "Book | None" = None


@dataclass(frozen=True, slots=True)
class Slotted:
    inner: Any


class OwnReason(Reason):
    pass


PLAIN = [
    *(None, True, False, 0, 1, -1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**400, -(10**400)),
    *(0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, 1j, complex(-0.0, math.nan)),
    *("", "ü", "\ud800", "a\udcffb", "\0", b"", b"\x80", b"\xc4", bytearray(), bytearray(b"x")),
    *([], (), {}, set(), frozenset(), [[]], ((),), {"": {}}, [()], ([],), {(): []}),
    {1: "int", "1": "str", b"1": "bytes", None: 0, (1, 2): 3, frozenset({1}): 4, 1.5: 5, date(2026, 1, 1): 6},
    {True: 1, 0: False},
    {"z": 1, "a": 2, "m": 3},
    [(1, [2, (3, {"a": (4,)})]), {5, (6, frozenset({7}))}],
    [bytearray(b"x"), b"x", "x", {"x": (bytearray(b"y"), 2**70, {"z": bytearray()})}, 2**80, {1}, Decimal("1.0")],
    {"lone \udc80": bytearray(b"both")},
    datetime(2026, 10, 25, 2, 30, fold=1),
    datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1), "CET")),
    datetime(2026, 1, 1, tzinfo=timezone(timedelta(microseconds=-1))),
    *(datetime.min, datetime.max, date.min, date.max, time.min, time.max, timedelta.min, timedelta.max, UTC),
    *(Decimal("NaN"), Decimal("sNaN"), Decimal("-0"), Decimal("1E+1000"), Decimal("-Infinity")),
    *(uuid1(), uuid4(), UUID(int=0, is_safe=SafeUUID.safe)),
    *(StepRaised("E", "m", "tb", "p", 2), StepTimedOut("p", 5.0), InvalidOutcome("p", "got", "allowed"), Reason()),
    AllFailed([StepRaised("E", "m"), RetriesExhausted(3, {"a": (1,)}), "text"]),
    RetriesExhausted(2, bytearray(b"x")),
    Cause("signal", "SIGSEGV", "run", 1, StepRaised("E", "m")),
    *(msgpack.ExtType(0, b""), msgpack.ExtType(13, b"data")),
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: f"{type(value).__name__}-{ascii(value)[:40]}")
def test_plain_values_by_name(value: Any) -> None:
    assert is_plain(encode(value))
    assert same(decode(encode(value), trust="data"), value)


PICKLED = [
    Colour.RED,
    Text("x"),
    Point(1, 2),
    {"deep": [{"in": (Point(1, 2),)}]},
    collections.OrderedDict(b=1, a=2),
    collections.defaultdict(list, a=[1]),
    collections.Counter("abca"),
    collections.deque([1, 2], maxlen=3),
    Book("A", ["b"]),
    Slotted(Slotted(1)),
    {Text("a")},
    ValueError("x"),
    datetime(2026, 1, 1, tzinfo=zoneinfo.ZoneInfo("UTC")),
    OwnReason(),
    range(3),
    math.sin,
    Book,
    functools.partial(int, base=2),
    ...,
]


@pytest.mark.parametrize("value", PICKLED, ids=lambda value: type(value).__name__)
def test_other_values_go_whole_by_pickle_and_are_not_degraded(value: Any) -> None:
    data = encode(value)
    assert not is_plain(data)
    again = decode(data)
    assert type(again) is type(value)
    assert repr(again) == repr(value)


def test_an_object_may_hold_itself() -> None:
    book = Book("A")
    book.sequel = book
    again = decode(encode({"book": book}))["book"]
    assert again.sequel is again


def test_the_notes_of_a_reason_are_kept() -> None:
    reason = StepRaised("E", "m")
    reason.add_note("look here")
    assert decode(encode(reason)).__notes__ == ["look here"]


def test_what_is_decoded_is_nobody_elses() -> None:
    data = encode({"a": []})
    decode(data)["a"].append(1)
    assert decode(data) == {"a": []}


def test_the_codec_of_the_machine() -> None:
    codec = ValueCodec()
    assert codec.decode(codec.encode({"a": (1,)})) == {"a": (1,)}


class Unready(Exception):
    """Pickles as its args, which are too few to make it again."""

    def __init__(self, what: str, *, when: int) -> None:
        super().__init__(what)
        self.when = when


def test_the_codec_of_the_machine_refuses_what_cannot_be_read_back() -> None:
    with pytest.raises(NotPortable, match=r"^state: it cannot be read back: TypeError: .* 'when'$") as caught:
        ValueCodec().encode({"last": Unready("x", when=1)})
    assert isinstance(caught.value.__cause__, TypeError)


# ------------------------------------------------------------------ what does not travel


class Supervisor:
    __caravela_unportable__ = "a supervisor stays with its process"


class Obstinate:
    def __reduce__(self) -> Any:
        raise RuntimeError("I would rather not")


class Tidy:
    """Has a lock, but does not send it."""

    def __init__(self, kept: Any) -> None:
        self.lock = threading.Lock()
        self.kept = kept

    def __getstate__(self) -> dict[str, Any]:
        return {"kept": self.kept}


@dataclass
class Owner:
    lock: Any


def generate() -> Any:
    yield


def local_class() -> type:
    class Local:
        pass

    return Local


def cyclic_owner() -> Owner:
    owner = Owner(None)
    owner.lock = {"me": owner, "locks": [threading.RLock()]}
    return owner


REFUSED = [
    (lambda: {"a": [1, 2, 3, Owner(threading.Lock())]}, "state['a'][3].lock", "a lock cannot leave its process"),
    (threading.Lock, "state", "a lock cannot leave"),
    (threading.RLock, "state", "RLock cannot leave"),
    (lambda: [threading.Event()], "state[0]", "an Event cannot leave"),
    (lambda: [threading.Condition()], "state[0]", "a Condition cannot leave"),
    (lambda: (threading.Semaphore(),), "state[0]", "a Semaphore cannot leave"),
    (lambda: {"t": threading.Thread()}, "state['t']", "a Thread cannot leave"),
    (lambda: {"g": generate()}, "state['g']", "a generator cannot leave"),
    (lambda: {"f": sys._getframe()}, "state['f']", "a frame cannot leave"),
    (lambda: {"m": sys}, "state['m']", "a module cannot leave"),
    (lambda: memoryview(b"x"), "state", "a memoryview cannot leave"),
    (lambda: {1: [memoryview(b"x")]}, "state[1][0]", "a memoryview cannot leave"),
    (lambda: {frozenset({memoryview(b"x")})}, "state element", "a memoryview cannot leave"),
    (lambda: {"f": lambda: 1}, "state['f']", "<locals>.<lambda> cannot be found under its name"),
    (lambda: {"c": local_class()}, "state['c']", "class tests.protocol.test_payload.local_class.<locals>.Local"),
    (lambda: [local_class()()], "state[0]", "class tests.protocol.test_payload.local_class.<locals>.Local"),
    (lambda: local_class()(), "state", "found under its name: a function made it; move it to the head of the module"),
    (lambda: {"s": (1, Supervisor())}, "state['s'][1]", "a supervisor stays with its process"),
    (lambda: [Obstinate()], "state[0]", "an Obstinate cannot be pickled: RuntimeError: I would rather not"),
    (lambda: Slotted([{"x": threading.Lock()}]), "state.inner[0]['x']", "a lock cannot leave"),
    (lambda: collections.OrderedDict(a=[threading.Lock()]), "state['a'][0]", "a lock cannot leave"),
    (lambda: {(1, threading.Lock()): 1}, "state key", "a lock cannot leave"),
    (lambda: Tidy({"inner": threading.Lock()}), "state.kept['inner']", "a lock cannot leave"),
    (lambda: functools.partial(print, threading.Lock()), "state", "a lock cannot leave"),
    (cyclic_owner, "state.lock['locks'][0]", "RLock cannot leave"),
    (lambda: RetriesExhausted(1, [threading.Lock()]), "state.last[0]", "a lock cannot leave"),
]


@pytest.mark.parametrize(("make", "path", "why"), REFUSED, ids=[why for _, _, why in REFUSED])
def test_what_cannot_travel_is_named_with_the_path_to_it(make: Any, path: str, why: str) -> None:
    with pytest.raises(NotPortable) as caught:
        encode(make())
    assert caught.value.path == path or (path.endswith((" key", " element")) and caught.value.path.startswith(path))
    assert why in caught.value.why


SENDS = [encode, functools.partial(export, what="state")]
OF_PROCESSES = {
    "process": ["BaseProcess"],
    "queues": ["Queue", "SimpleQueue", "JoinableQueue"],
    "sharedctypes": ["Synchronized"],
    "synchronize": ["Lock", "RLock", "Semaphore", "Condition", "Event", "Barrier"],
}


@pytest.mark.parametrize("package", ["multiprocessing", "multiprocess"])
@pytest.mark.parametrize("send", SENDS)
def test_what_processes_share_by_descriptor_is_refused(package: str, send: Any) -> None:
    modules = {name: importlib.import_module(f"{package}.{name}") for name in (*OF_PROCESSES, "connection")}
    one, other = modules["connection"].Pipe()
    listener = modules["connection"].Listener(("127.0.0.1", 0))
    # Empty ones: a real lock starts a process that looks after it.
    empty = [object.__new__(getattr(modules[name], kind)) for name, kinds in OF_PROCESSES.items() for kind in kinds]
    try:
        for held in (one, listener, *empty):
            with pytest.raises(NotPortable) as caught:
                send({"a": [held]})
            assert caught.value.path == "state['a'][0]"
            assert caught.value.why == f"{type(held).__qualname__} cannot leave its process"
    finally:
        for opened in (one, other, listener):
            opened.close()


WAITING: list[Any] = [asyncio.Lock, asyncio.Event, asyncio.Queue, asyncio.Semaphore]


async def waited_for(kind: Any) -> Any:
    made = kind()
    waits = asyncio.ensure_future(
        made.get() if kind is asyncio.Queue else made.wait() if kind is asyncio.Event else twice(made)
    )
    await asyncio.sleep(0)  # it waits now
    waits.cancel()
    return made


async def twice(lock: Any) -> None:
    await lock.acquire()
    await lock.acquire()


@pytest.mark.parametrize("send", SENDS)
def test_what_pickle_would_copy_to_no_sense_is_refused(tmp_path: Path, send: Any) -> None:
    gone, folder = Gone(), tempfile.TemporaryDirectory(dir=tmp_path)
    with folder, shelve.open(str(tmp_path / "shelf")) as shelf:
        for held, why in [
            (weakref.ref(gone), "what it refers to weakly stays in this process"),
            (weakref.proxy(gone), "what it refers to weakly stays in this process"),
            (weakref.WeakSet([gone]), "what it refers to weakly stays in this process"),
            (folder, "a temporary directory belongs to the process that removes it; send its name"),
            (shelf, "an open shelf cannot leave its process"),
            *(
                (asyncio.run(waited_for(kind)), f"this asyncio.{kind.__name__} belongs to an event loop")
                for kind in WAITING
            ),
        ]:
            with pytest.raises(NotPortable) as caught:
                send({"a": [held]})
            assert caught.value.path == "state['a'][0]"
            assert why in caught.value.why


@pytest.mark.parametrize("kind", WAITING)
def test_what_no_event_loop_has_taken_yet_travels(kind: type) -> None:
    assert type(decode(encode([kind()]))[0]) is kind


def test_a_coroutine_an_open_file_a_socket_and_a_database_are_named() -> None:
    async def body() -> None: ...

    coroutine = body()
    database = sqlite3.connect(":memory:")
    with socket.socket() as connection, open(__file__) as file:
        for thing, why in [
            (coroutine, "a coroutine cannot leave"),
            (file, "an open file (TextIOWrapper) cannot leave"),
            (connection, "a socket cannot leave"),
            (database, "a Connection cannot leave"),
        ]:
            with pytest.raises(NotPortable) as caught:
                encode({"a": [thing]}, what="reason")
            assert caught.value.path == "reason['a'][0]"
            assert why in caught.value.why
    coroutine.close()
    database.close()


def test_a_reduce_that_answers_with_an_error_of_ours_is_heard() -> None:
    class Handle:
        def __reduce__(self) -> Any:
            raise NotPortable("handle", "stays here")

    with pytest.raises(NotPortable, match="handle: stays here"):
        encode([Handle()])


# ------------------------------------------------------------------ limits


def nested(kind: type, levels: int) -> Any:
    value: Any = kind()
    for _ in range(levels - 1):
        value = {"a": value} if kind is dict else kind([value])
    return value


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_depth_is_limited_and_what_is_encoded_can_be_decoded(kind: type) -> None:
    decode(encode(nested(kind, payload.LEVELS)))
    for levels in range(payload.LEVELS + 1, payload.LEVELS + 4):
        try:
            data = encode(nested(kind, levels))
        except LimitExceeded:
            continue
        decode(data)
    with pytest.raises(LimitExceeded, match=r"state has more than 1,023 levels \(or is cyclic\); the limit is 1,023"):
        encode(nested(kind, 10_000))


def test_sets_inside_sets_are_limited() -> None:
    decode(encode(nested(frozenset, 32)))
    with pytest.raises(LimitExceeded, match="state has more than 32 sets inside sets"):
        encode(nested(frozenset, 33))


def test_what_is_deep_and_not_plain_is_refused_too() -> None:
    with pytest.raises(LimitExceeded, match="levels"):
        encode([Book("x"), nested(list, 100_000)])


def test_cyclic_plain_data_is_refused() -> None:
    ring: list[Any] = []
    ring.append((ring,))
    wheel: dict[str, Any] = {}
    wheel["a"] = [wheel]
    for value in (ring, wheel):
        with pytest.raises(LimitExceeded) as caught:
            encode(value, what="reason")
        assert (caught.value.what, caught.value.unit) == ("reason", "levels")
        assert str(caught.value) == "reason has more than 1,023 levels (or is cyclic); the limit is 1,023"


def test_the_limit_in_bytes_is_exact() -> None:
    assert len(encode(b"x" * (PAYLOAD_LIMIT - 5))) == PAYLOAD_LIMIT
    with pytest.raises(LimitExceeded, match="state has 67,108,865 bytes; the limit is 67,108,864"):
        encode(b"x" * (PAYLOAD_LIMIT - 4))


@pytest.mark.parametrize("other", [1, Book("pickled")], ids=["plain", "pickled"])
def test_what_is_too_large_is_refused_without_many_copies(other: Any) -> None:
    value = {"a": (1, [b"x" * (PAYLOAD_LIMIT + 1), other])}
    tracemalloc.start()
    try:
        with pytest.raises(LimitExceeded, match="bytes"):
            encode(value)
        assert tracemalloc.get_traced_memory()[1] < 4 * PAYLOAD_LIMIT
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------ bytes from elsewhere


def test_a_pickle_is_not_trusted_as_data() -> None:
    with pytest.raises(UndecodableState, match=r'a pickle from a worker is not trusted \(trust="data"\)'):
        decode(encode(Book("x")), trust="data")


class Gone:
    pass


def test_the_empty_map_is_no_pickle() -> None:
    assert encode({}) == b"\x80"
    assert decode(b"\x80", trust="data") == {}


def test_what_cannot_be_decoded_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode([Gone(), 1])
    monkeypatch.delattr(sys.modules[__name__], "Gone")
    with pytest.raises(UndecodableState, match=r"AttributeError.*Gone") as caught:
        decode(data)
    assert isinstance(caught.value.__cause__, AttributeError)


class Bang:
    def __reduce__(self) -> Any:
        return explode, ()


def explode() -> None:
    raise LookupError("bang")


BROKEN = {
    "nothing": b"",
    "cut": encode([1, "two"])[:-1],
    "more than one": encode(1) + encode(2),
    "no msgpack": b"\xc1",
    "no utf-8": b"\xa1\xff",
    "list as key": b"\x81\x90\x01",
    "too deep": b"\x91" * 5000,
    "unknown extension": b"\xd4\x80\x00",
    "cut pickle": pickle.dumps([1, 2, 3])[:-3],
    "a pickle that raises": pickle.dumps(Bang()),
    "a module that is not there": b"\x80\x05cno_such_module\nname\n.",
    "no such reason": encode(StepTimedOut("p", 1)).replace(b"StepTimedOut", b"StepTimedOot"),
    "a reason with too little": b"\x92\xc7\x00\xf1\xacStepTimedOut",
    "a month that is none": encode(date(2026, 1, 1)).replace(b"\x01\x01", b"\x0d\x01"),
    "sets all the way down": functools.reduce(
        lambda inner, _: b"\xc9" + (len(inner) + 1).to_bytes(4, "big") + b"\xf2\x91" + inner, range(5000), b"\xc0"
    ),
}


@pytest.mark.parametrize("trust", ["pickle", "data"])
@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_bytes_that_are_no_value(data: bytes, trust: Any) -> None:
    with pytest.raises(UndecodableState):
        decode(data, trust=trust)


@settings(EXAMPLES, max_examples=1000)
@given(st.binary(max_size=64))
def test_random_bytes_are_a_value_or_undecodable(data: bytes) -> None:
    with suppress(UndecodableState):
        decode(data, trust="data")


def test_many_empty_dicts_decode() -> None:
    assert len(decode(encode([{}] * 1_000_000))) == 1_000_000


def test_threads_do_not_disturb_each_other() -> None:
    wanted = [{"n": n, "t": (n, "x" * n)} for n in range(300)]
    got: dict[int, list[Any]] = {}

    def work(who: int) -> None:
        got[who] = [decode(encode(value)) for value in wanted]

    threads = [threading.Thread(target=work, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(got[who] == wanted for who in range(4))


def test_an_io_object_in_memory_may_travel() -> None:
    again = decode(encode({"a": io.BytesIO(b"x")}))
    assert again["a"].getvalue() == b"x"
