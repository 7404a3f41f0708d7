"""Every message comes back from the wire as it was, however that is cut; what is no message is refused for good."""

import collections
import dataclasses
import os
import subprocess
import sys
import tracemalloc
from typing import Any, get_args, get_type_hints

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caravela.errors import LimitExceeded, ProtocolError
from caravela.protocol import messages
from caravela.protocol.codec import ENVELOPE_LIMIT, Decoder, encode
from caravela.protocol.payload import PAYLOAD_LIMIT

EXAMPLES = settings(max_examples=300, deadline=None, derandomize=True, database=None)

UNIONS: dict[Any, tuple[type, ...]] = {
    "to_worker": get_args(messages.ToWorker),
    "to_supervisor": get_args(messages.ToSupervisor),
}
KINDS = [(union, kind) for union, kinds in UNIONS.items() for kind in kinds]
FIELDS = {
    int: st.integers(0, 2**63 - 1) | st.integers(0, 300),
    bool: st.booleans(),
    str: st.text(max_size=300),
    bytes: st.binary(max_size=300),
}


def messages_of(kind: type) -> st.SearchStrategy[Any]:
    return st.builds(kind, *(FIELDS[declared] for declared in get_type_hints(kind).values()))


def stream_of(union: str) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.one_of([messages_of(kind) for kind in UNIONS[union]]), max_size=12)


# ------------------------------------------------------------------ there and back


@pytest.mark.parametrize(("union", "kind"), KINDS, ids=[f"{union}-{kind.__name__}" for union, kind in KINDS])
def test_every_message_comes_back(union: Any, kind: type) -> None:
    @settings(EXAMPLES, max_examples=100)
    @given(messages_of(kind))
    def check(message: Any) -> None:
        decoder = Decoder(union)
        again = decoder.feed(encode(message))
        assert again == [message]
        assert [type(value) for value in dataclasses.astuple(again[0])] == [
            type(value) for value in dataclasses.astuple(message)
        ]
        assert decoder.pending == 0

    check()


def test_the_wire_is_an_array_that_begins_with_the_place_in_the_union() -> None:
    assert msgpack.unpackb(encode(messages.State(7, b"x"))) == [2, 7, b"x"]
    assert msgpack.unpackb(encode(messages.Hello(1, 2, b"n"))) == [0, 1, 2, b"n"]


def test_every_two_way_cut_of_a_stream_gives_the_same() -> None:
    samples: dict[type, Any] = {int: 70_000, bool: True, str: "päth", bytes: b"\x93\xc1" * 20}
    for union, kinds in UNIONS.items():
        stream = [kind(*(samples[declared] for declared in get_type_hints(kind).values())) for kind in kinds]
        data = b"".join(map(encode, stream))
        for cut in range(len(data) + 1):
            decoder = Decoder(union)
            assert decoder.feed(data[:cut]) + decoder.feed(memoryview(data)[cut:]) == stream


@EXAMPLES
@given(stream_of("to_supervisor"), st.lists(st.integers(1, 90), min_size=1, max_size=30))
def test_any_chunks_give_the_same(stream: list[Any], sizes: list[int]) -> None:
    data = b"".join(map(encode, stream))
    decoder = Decoder("to_supervisor")
    got, start, turn = [], 0, 0
    while start < len(data):
        size = sizes[turn % len(sizes)]
        got += decoder.feed(data[start : start + size])
        start, turn = start + size, turn + 1
    assert got == stream
    assert decoder.pending == 0


def test_a_message_that_was_cut_is_pending() -> None:
    data = encode(messages.State(1, b"x" * 100))
    for cut in range(1, len(data)):
        decoder = Decoder("to_supervisor")
        assert decoder.feed(encode(messages.Pong(1)) + data[:cut]) == [messages.Pong(1)]
        assert decoder.pending == cut


def test_texts_with_lone_surrogates_are_sent_escaped() -> None:
    assert Decoder("to_worker").feed(encode(messages.Stop("a\udcffb"))) == [messages.Stop("a\\udcffb")]


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("text", "str is no message"),
        (None, "NoneType is no message"),
        (messages.Query(True), r"Query is made of \(int\), not of \(bool\)"),
        (messages.State(1, bytearray(b"x")), r"State is made of \(int, bytes\), not of \(int, bytearray\)"),  # type: ignore[arg-type]
        (messages.State(None, b""), "not of"),  # type: ignore[arg-type]
        (messages.Query(-1), "holds -1"),
        (messages.Query(2**63), r"allowed is 0 to 2\*\*63 - 1"),
    ],
)
def test_what_is_no_message_is_not_sent(message: Any, why: str) -> None:
    with pytest.raises(TypeError, match=why):
        encode(message)


def test_the_limits_are_the_same_on_both_sides() -> None:
    room = ENVELOPE_LIMIT - 9  # array, tag, two string headers
    fits = messages.Define("m" * (room - 100), "n" * 95, b"payload" * 100_000)
    assert Decoder("to_worker").feed(encode(fits)) == [fits]

    with pytest.raises(LimitExceeded, match="the envelope of Define has 131,"):
        encode(messages.Define("m" * ENVELOPE_LIMIT, "n" * ENVELOPE_LIMIT, b""))
    tag = UNIONS["to_worker"].index(messages.Define)
    with pytest.raises(ProtocolError, match=r"the envelope of Define has 131,\d{3} bytes; the limit is 65,536"):
        Decoder("to_worker").feed(msgpack.packb([tag, "m" * ENVELOPE_LIMIT, "n" * ENVELOPE_LIMIT, b""]))

    with pytest.raises(LimitExceeded, match="a payload of State has 67,108,865 bytes"):
        encode(messages.State(1, bytes(PAYLOAD_LIMIT + 1)))
    with pytest.raises(ProtocolError, match="max_bin_len"):
        Decoder("to_supervisor").feed(msgpack.packb([2, 1, bytes(PAYLOAD_LIMIT + 1)]))


def test_the_largest_payload_passes_and_its_memory_is_given_back() -> None:
    data = encode(messages.State(1, bytes(PAYLOAD_LIMIT)))
    decoder = Decoder("to_supervisor")
    tracemalloc.start()
    try:
        got: list[Any] = []
        for start in range(0, len(data), 2**16):
            got += decoder.feed(memoryview(data)[start : start + 2**16])
        assert len(got) == 1 and len(got[0].state) == PAYLOAD_LIMIT
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data)
        got.clear()
        assert tracemalloc.get_traced_memory()[0] < 2**20
    finally:
        tracemalloc.stop()
    assert decoder.feed(encode(messages.Pong(1))) == [messages.Pong(1)]


def test_four_payloads_together_may_be_larger_than_one() -> None:
    start = messages.Start(*[bytes(17 * 2**20)] * 4)
    assert Decoder("to_worker").feed(encode(start)) == [start]


NO_MESSAGE = {
    "an empty array": (b"\x90", "a message begins with its tag, not with NoneType"),
    "a tag too high": (b"\x92\x63\x01", "no message has the tag 99"),
    "a negative tag": (b"\x92\xff\x01", "no message has the tag -1"),
    "true as tag": (msgpack.packb([True, b"", "", b""]), "not with bool"),
    "a text as tag": (msgpack.packb(["State", 1]), "not with str"),
    "too few fields": (msgpack.packb([2, 1]), r"State is made of \(int, bytes\), not of \(int\)"),
    "too many fields": (msgpack.packb([2, 1, b"", 1]), "not of"),
    "more than any has": (msgpack.packb([2, 1, b"", 1, 1, 1, 1, 1]), "max_array_len"),
    "bool for int": (msgpack.packb([2, True, b""]), r"not of \(bool, bytes\)"),
    "int for bool": (msgpack.packb([8, 1, 1, b""]), "Reply is made of"),
    "text for bytes": (msgpack.packb([2, 1, "x"]), r"not of \(int, str\)"),
    "a float": (msgpack.packb([2, 1.0, b""]), r"not of \(float, bytes\)"),
    "nil": (msgpack.packb([2, None, b""]), r"not of \(NoneType, bytes\)"),
    "a negative int": (msgpack.packb([2, -1, b""]), "State holds -1"),
    "a huge int": (msgpack.packb([2, 2**63, b""]), "State holds 9223372036854775808"),
    "an array inside": (msgpack.packb([2, 1, [1]]), "no message|made of"),
    "a message inside": (msgpack.packb([2, 1, [13, 1]]), r"not of \(int, Pong\)"),
    "an empty map inside": (msgpack.packb([2, 1, {}]), r"not of \(int, dict\)"),
    "a map inside": (msgpack.packb([2, 1, {"a": 1}]), "max_map_len"),
    "an extension": (msgpack.packb([2, 1, msgpack.ExtType(1, b"x")]), "max_ext_len"),
    "an empty extension": (b"\x93\x02\x01\xc7\x00\x01", "ExtType"),
    "a timestamp": (b"\x93\x02\x01\xd6\xff\x00\x00\x00\x01", "max_ext_len"),
    "a bare number": (b"\x05", "a bare int is no message"),
    "a bare map": (b"\x80", "a bare dict is no message"),
    "a bare text": (b"\xa1x", "a bare str is no message"),
    "no type at all": (b"\xc1", "no msgpack: FormatError"),
    "no utf-8": (b"\x93\x0b\xa2\xff\xfe\x01", "no msgpack: UnicodeDecodeError"),
    "an encoded surrogate": (b"\x93\x0b\xa3\xed\xa0\x80\x01", "no msgpack: UnicodeDecodeError"),
    "a long text": (b"\x93\x0b" + msgpack.packb("x" * (ENVELOPE_LIMIT + 1)), "max_str_len"),
    "an endless array": (b"\xdd\xff\xff\xff\xff", "max_array_len"),
    "too deep": (b"\x91" * 2000, "no msgpack: StackError"),
}


@pytest.mark.parametrize(("data", "why"), NO_MESSAGE.values(), ids=NO_MESSAGE)
def test_what_is_no_message_is_refused_and_so_is_all_that_follows(data: bytes, why: str) -> None:
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
        decoder = Decoder("to_supervisor")
        with pytest.raises(ProtocolError, match=why) as first:
            collections.deque(map(decoder.feed, pieces), maxlen=0)
        for _ in range(2):
            with pytest.raises(ProtocolError) as later:
                decoder.feed(encode(messages.Pong(1)))
            assert later.value == first.value


def test_the_messages_of_one_direction_are_none_in_the_other() -> None:
    with pytest.raises(ProtocolError):
        Decoder("to_worker").feed(encode(messages.Pong(1)))


def test_without_its_c_extension_msgpack_serves_as_well() -> None:
    program = """
import msgpack
assert "fallback" in msgpack.Packer.__module__
from caravela.errors import LimitExceeded, ProtocolError
from caravela.protocol import messages
from caravela.protocol.codec import Decoder, encode
from caravela.protocol.payload import decode, encode as encode_value

stream = [messages.State(1, b"x" * 70_000), messages.Entered("p", 2), messages.Reply(1, True, b"")]
data = b"".join(map(encode, stream))
decoder = Decoder("to_supervisor")
assert [m for at in range(0, len(data), 777) for m in decoder.feed(data[at:at + 777])] == stream
assert decoder.pending == 0
longest = b"\\xff\\xff\\xff\\xff"
for bad in (b"\\xc1", b"\\x91" * 3000, b"\\xdd" + longest, b"\\xc6" + longest, b"\\x93\\x02\\x01\\xff"):
    try:
        Decoder("to_supervisor").feed(bad)
    except ProtocolError:
        continue
    raise AssertionError(bad)

value = {"a": [(1, 2.5, None), {3, 2**70}, bytearray(b"x"), "\\ud800"], (1,): frozenset({b"y"})}
assert decode(encode_value(value), trust="data") == value
assert type(decode(encode_value(value))["a"][2]) is bytearray
deep = []
for _ in range(5000):
    deep = [deep]
try:
    encode_value(deep)
except LimitExceeded as error:
    assert error.unit == "levels"
"""
    environment = {**os.environ, "MSGPACK_PUREPYTHON": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_was_said_before_the_nonsense_is_kept() -> None:
    said = [messages.State(1, b"a"), messages.Done(2, b"b")]
    taken: list[Any] = []
    with pytest.raises(ProtocolError):
        Decoder("to_supervisor").take(b"".join(map(encode, said)) + b"\xc1 nonsense", taken)
    assert taken == said
