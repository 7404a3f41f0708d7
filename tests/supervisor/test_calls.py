"""One question, one answer, one who waits."""

import threading
from collections.abc import Callable

import pytest

from caravela.supervisor.calls import Call


def test_every_call_has_a_number_of_its_own() -> None:
    numbers = [Call("update").id for _ in range(100)]
    assert len(set(numbers)) == 100 and min(numbers) > 0  # 0: nobody waits


def test_an_answer() -> None:
    call = Call("update")
    assert not call.done and not call.wait(0.0)
    call.answer(True, b"state")
    assert call.done and call.wait(0.0) and call.wait(0.0)
    assert (call.ok, call.value, call.error, call.ended) == (True, b"state", None, False)


def test_an_answer_that_is_an_error() -> None:
    call = Call("update")
    call.answer(False, b"error")
    assert call.wait(0.0) and (call.ok, call.value) == (False, b"error")


def test_it_fails() -> None:
    call, error = Call("update"), ValueError()
    call.fail(error)
    assert call.wait(0.0) and call.error is error and not call.ok


def test_the_flow_ends() -> None:
    call = Call("update")
    call.end()
    assert call.wait(0.0) and call.ended and not call.ok


ENDINGS: dict[str, Callable[[Call], None]] = {
    "answer": lambda call: call.answer(True, b"state"),
    "fail": lambda call: call.fail(ValueError()),
    "end": lambda call: call.end(),
}


@pytest.mark.parametrize("first", ENDINGS)
@pytest.mark.parametrize("second", ENDINGS)
def test_the_first_wins(first: str, second: str) -> None:
    call = Call("update")
    ENDINGS[first](call)
    before = (call.ok, call.value, call.error, call.ended)
    ENDINGS[second](call)
    assert call.wait(0.0)
    assert (call.ok, call.value, call.error, call.ended) == before


def test_a_negative_time_left_does_not_wait_for_ever() -> None:
    assert not Call("get_state").wait(-1.0)


def test_the_one_who_waits_is_woken() -> None:
    call = Call("get_state")
    woken: list[bool] = []
    thread = threading.Thread(target=lambda: woken.append(call.wait(10.0)))
    thread.start()
    call.answer(True, b"state")
    thread.join()
    assert woken == [True]


def test_several_finish_it_at_once() -> None:
    for _ in range(50):
        call = Call("update")
        barrier = threading.Barrier(4)
        failed: list[BaseException] = []

        def finish(
            ending: Callable[[Call], None],
            call: Call = call,
            barrier: threading.Barrier = barrier,
            failed: list[BaseException] = failed,
        ) -> None:
            barrier.wait()
            try:
                ending(call)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=finish, args=(ending,)) for ending in ENDINGS.values()]
        for thread in threads:
            thread.start()
        barrier.wait()
        for thread in threads:
            thread.join()
        assert not failed and call.wait(0.0)
        assert [call.ok, call.error is not None, call.ended].count(True) == 1
