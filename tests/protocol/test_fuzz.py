"""Whatever bytes come: messages or ``ProtocolError``, in bounded memory and time."""

import gc
import time
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caravela.errors import ProtocolError
from caravela.protocol import messages
from caravela.protocol.codec import Decoder, encode

MIB = 2**20
STREAM: list[messages.ToSupervisor] = [
    messages.Hello(1, 70_000, b"nonce"),
    messages.Ready(b"\x80", "flow", b"\x90"),
    messages.State(2**40, bytes(300)),
    messages.Entered("repeat/sequence[2]/run[1]", 3),
    messages.Reply(7, False, b"error"),
    messages.Rejected(9, b"error", True),
    messages.Progress(1, 200),
    messages.Log(bytes(70_000)),
    messages.Done(2**40, b"\x81\xa1a\x01"),
]
FRAMES = [encode(message) for message in STREAM]


def survive(data: bytes, pieces: int = 1) -> None:
    """Feeds ``data``; checks memory (the data itself was there before) and the thread's CPU time."""
    union: Any
    for union in ("to_supervisor", "to_worker"):
        step = len(data) // pieces + 1
        gc.disable()  # what the tests before left to collect is not the decoder's time
        tracemalloc.start()
        began = time.thread_time()
        decoder = Decoder(union)
        try:
            for start in range(0, len(data), step):
                decoder.feed(memoryview(data)[start : start + step])
        except ProtocolError:
            pass
        took = time.thread_time() - began
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        gc.enable()
        assert peak <= 4 * len(data) + MIB, f"{peak:,} bytes for {len(data):,}"
        assert took <= 0.1, f"{took * 1000:.0f} ms for {len(data):,} bytes"


operations = st.tuples(
    st.sampled_from(["set", "flip", "delete", "insert", "cut", "double", "nest"]),
    st.integers(0, 2**16),
    st.integers(0, 255) | st.sampled_from([0x80, 0x90, 0x9F, 0xC1, 0xC6, 0xC9, 0xDB, 0xDD, 0xDF]),
)


def mutate(data: bytes, changes: list[tuple[str, int, int]]) -> bytes:
    changed = bytearray(data)
    for operation, place, byte in changes:
        # Mostly in the first bytes of frames: in the middle of a payload nothing happens.
        at = place % max(1, min(len(changed), 64 if place % 4 else len(changed)))
        match operation:
            case "set":
                changed[at : at + 1] = [byte]
            case "flip":
                changed[at : at + 1] = [changed[at] ^ (1 << byte % 8)] if changed else []
            case "delete":
                del changed[at : at + 1 + byte % 8]
            case "insert":
                changed[at:at] = [byte] * (1 + place % 5)
            case "cut":
                del changed[at:]
            case "double":
                changed[at:at] = changed[at : at + byte]
            case _:
                changed[at:at] = bytes([0x91 + byte % 15]) * (1 + place % 300)
    return bytes(changed)


@settings(max_examples=2500, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.sampled_from(FRAMES), min_size=1, max_size=3),
    st.lists(operations, min_size=1, max_size=6),
    st.integers(1, 3),
)
def test_mutated_streams(frames: list[bytes], changes: list[tuple[str, int, int]], pieces: int) -> None:
    survive(mutate(b"".join(frames), changes), pieces)


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    survive(data)


structures = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary())
        | st.tuples(st.integers(0, 13), inner, inner)
    ),
    max_leaves=30,
)


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(st.lists(structures, min_size=1, max_size=4))
def test_well_formed_msgpack_that_is_no_message(values: list[Any]) -> None:
    survive(b"".join(map(msgpack.packb, values)))


def tree(width: int, levels: int, leaf: bytes) -> bytes:
    for _ in range(levels):
        leaf = bytes([0x90 + width]) + leaf * width
    return leaf


HELLO = encode(messages.Hello(70_000, 70_000, b""))
WIDE = ("x" * 65_000 + "\U0001f600").encode()  # four bytes a character once decoded

BOMBS = {
    "arrays all the way down": b"\x91" * 200_000,
    "broad arrays all the way down": b"\x95" * 200_000,
    "broadest arrays all the way down": b"\x9f" * 200_000,
    "a tree of empty arrays": tree(4, 8, b"\x90"),
    "a tree of maps": tree(4, 8, b"\x80"),
    "a tree of numbers": tree(4, 8, b"\xcf" + bytes([1] * 8)),
    "a tree of messages": tree(4, 6, HELLO),
    "messages and a level deeper, to the worker": (b"\x95" + HELLO * 4) * 5_000,
    "messages and a level deeper, to the supervisor": (b"\x94" + HELLO * 3) * 5_000,
    "arrays of 64 arrays": b"\xdc\x00\x40" * 50_000,
    "an array of 4 billion": b"\xdd\xff\xff\xff\xff" + b"\x01" * 100_000,
    "a map of 4 billion": b"\xdf\xff\xff\xff\xff" + b"\x01" * 100_000,
    "a payload of 4 GiB": b"\x93\x02\x01\xc6\xff\xff\xff\xff" + bytes(100_000),
    "a text of 4 GiB": b"\x93\x0b\xdb\xff\xff\xff\xff" + b"x" * 100_000,
    "an extension of 4 GiB": b"\x93\x02\xc9\xff\xff\xff\xff\x01" + bytes(100_000),
    "wide texts": b"\x93\x0b" + msgpack.packb(WIDE.decode()) + b"\x01",
    "two wide texts": b"\x94\x03" + msgpack.packb(WIDE.decode()) * 2 + b"\xc4\x00",
    "four wide texts": b"\x95\x01" + msgpack.packb(WIDE.decode()) * 4,
    "a million nothings": b"\xc0" * MIB,
    "a payload of the wrong message": b"\x93\x0d\x01\xc6\x00\x80\x00\x00" + bytes(8 * MIB),
    "half a payload": b"\x93\x02\x01\xc6\x01\x00\x00\x00" + bytes(8 * MIB),
    "the last byte is none": b"".join(FRAMES) + b"\xc1",
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_bombs(data: bytes) -> None:
    survive(data)
    survive(data, pieces=50)
