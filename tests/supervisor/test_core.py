"""The pure machine of one supervised flow: whole lives as tables, no process and no clock."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caravela.errors import Cause, StepRaised
from caravela.protocol import messages
from caravela.supervisor import core
from caravela.supervisor.core import (
    BootFailed,
    Broken,
    Child,
    Crashed,
    Effect,
    Ended,
    Event,
    Exited,
    Forget,
    Kill,
    KillAsked,
    Launch,
    Launched,
    LaunchFailed,
    Phase,
    Publish,
    Ready,
    SendStop,
    StartAsked,
    StopAsked,
    Terminate,
    Tick,
    Up,
)
from caravela.supervisor.endings import End, GaveUp, LastWord, Refused, Silenced
from caravela.supervisor.events import Encoded
from caravela.supervisor.spec import Policy

DONE = messages.Done(3, b"done")
FAILED = messages.Failed(3, b"failed")
STOPPED = messages.Stopped(3, b"stopped")
ERROR = StepRaised("ValueError", "no", path="run[1]", attempt=2)

KILLED = Cause("signal", "SIGKILL")


def spent(max_restarts: int) -> str:
    return f"max_restarts={max_restarts} within 5 s are spent"


SEGV = Cause("signal", "SIGSEGV")
EXIT_0 = Cause("exit", "exit code 0")
EXIT_7 = Cause("exit", "exit code 7")
LOST = Cause("zygote_lost", "its zygote was lost")

RESTARTS = ("temporary", "transient", "permanent")


def started(restart: Any = "transient", **policy: Any) -> Child:
    child = Child(Policy(restart, **policy))
    assert child.advance(StartAsked(), 0.0) == [Launch()]
    assert child.advance(Launched(), 0.0) == []
    return child


def running(restart: Any = "transient", **policy: Any) -> Child:
    child = started(restart, **policy)
    assert child.advance(Ready(), 0.0) == [Up(None)]
    return child


def play(child: Child, *events: Event, now: float = 0.0) -> list[Effect]:
    return [effect for event in events for effect in child.advance(event, now)]


def end(child: Child, *events: Event, now: float = 0.0) -> End:
    """How the flow ended by these events, which are its last."""
    effects = play(child, *events, now=now)
    assert effects.count(Forget()) == 1 and effects[-1] == Forget()
    assert child.phase is Phase.ENDED and child.deadline is None
    (publish,) = [effect for effect in effects if isinstance(effect, Publish)]
    return publish.end


# ------------------------------------------------------------------ what ends how

CRASHES: dict[str, tuple[tuple[Event, ...], Cause]] = {
    "killed": ((Exited(KILLED),), KILLED),
    "segmentation fault": ((Exited(SEGV),), SEGV),
    "exit code": ((Exited(EXIT_7),), EXIT_7),
    "exit 0 without a last word": ((Exited(EXIT_0),), EXIT_0),
    "raise outside a body": (
        (Crashed(ERROR), Exited(Cause("exit", "exit code 70"))),
        Cause("raised", "ValueError: no", "run[1]", 2, ERROR),
    ),
    "protocol error": ((Broken("no message"), Exited(KILLED)), Cause("protocol", "no message")),
}

BOOT_FAILURES: dict[str, tuple[tuple[Event, ...], Cause]] = {
    "raises": (
        (BootFailed(ERROR), Exited(Cause("exit", "exit code 71"))),
        Cause("boot", "ValueError: no", "run[1]", 2, ERROR),
    ),
    "dies": ((Exited(SEGV),), SEGV),
    "exits 0": ((Exited(EXIT_0),), EXIT_0),
    "no process": ((LaunchFailed("EAGAIN"),), Cause("boot", "EAGAIN")),
    "garbage": ((Broken("no message"), Exited(KILLED)), Cause("protocol", "no message")),
}


@pytest.mark.parametrize("restart", RESTARTS)
@pytest.mark.parametrize("word", [DONE, FAILED], ids=["finishes", "fails"])
@pytest.mark.parametrize("exit", [EXIT_0, KILLED, LOST], ids=lambda cause: cause.kind)
def test_finishes_or_fails(restart: str, word: LastWord, exit: Cause) -> None:
    child = running(restart)
    if restart != "permanent":
        assert end(child, Ended(word), Exited(exit)) == word
        return
    cause = Cause("ended", "finished") if word is DONE else Cause("ended", "failed", carried=Encoded(FAILED.reason))
    assert play(child, Ended(word), Exited(exit)) == [Launch()]
    assert child.cause == cause
    assert play(child, Ready()) == [Up(cause)]


@pytest.mark.parametrize("restart", RESTARTS)
@pytest.mark.parametrize("crash", CRASHES)
def test_crashes(restart: str, crash: str) -> None:
    events, cause = CRASHES[crash]
    child = running(restart)
    if restart == "temporary":
        assert end(child, *events) == GaveUp(cause)
    else:
        assert [effect for effect in play(child, *events) if effect != Kill()] == [Launch()]
        assert play(child, Ready()) == [Up(cause)]
    assert child.cause == cause


@pytest.mark.parametrize("restart", RESTARTS)
@pytest.mark.parametrize("failure", BOOT_FAILURES)
def test_cannot_boot_at_start(restart: str, failure: str) -> None:
    events, cause = BOOT_FAILURES[failure]
    assert end(started(restart), *events) == Refused(cause)


@pytest.mark.parametrize("restart", ["transient", "permanent"])
@pytest.mark.parametrize("failure", BOOT_FAILURES)
def test_cannot_boot_at_a_restart(restart: str, failure: str) -> None:
    """0.1 s, doubling; the fifth in a row ends the flow. Its own budget: not a single restart is left in the other."""
    events, cause = BOOT_FAILURES[failure]
    child = running(restart, max_restarts=1)
    assert play(child, Exited(KILLED), now=10.0) == [Launch()]
    now = 10.0
    for incarnation, delay in enumerate((0.1, 0.2, 0.4, 0.8), 2):
        assert [effect for effect in play(child, *events, now=now) if effect != Kill()] == []
        assert child.phase is Phase.BACKOFF and child.deadline == now + delay
        assert (child.cause, child.incarnation) == (cause, incarnation)
        assert play(child, Tick(), now=now + delay * 0.99) == []
        now += delay
        assert play(child, Tick(), now=now) == [Launch()]
    assert end(child, *events, now=now) == GaveUp(replace(cause, spent="5 boots in a row have failed"))


def test_a_boot_that_works_starts_the_count_anew() -> None:
    child = running(max_restarts=100)
    play(child, Exited(KILLED))
    for _ in range(3):
        for _ in range(4):
            assert child.phase is Phase.STARTING
            play(child, LaunchFailed("EAGAIN"))
            assert child.deadline is not None
            play(child, Tick(), now=child.deadline)
        assert play(child, Ready()) == [Up(Cause("boot", "EAGAIN"))]
        play(child, Exited(KILLED))


@pytest.mark.parametrize("restart", RESTARTS)
@pytest.mark.parametrize("answer", [STOPPED, DONE, FAILED, None], ids=lambda word: type(word).__name__)
def test_is_stopped(restart: str, answer: LastWord | None) -> None:
    child = running(restart)
    said = () if answer is None else (Ended(answer),)
    assert end(child, StopAsked(5.0), *said, Exited(EXIT_0)) == (answer or Silenced())


def test_what_one_incarnation_said_is_not_the_cause_of_the_next() -> None:
    child = running()
    play(child, Crashed(ERROR), Exited(EXIT_7), Ready())
    assert play(child, Exited(KILLED)) == [Launch()]
    assert child.cause == KILLED and child.incarnation == 3


def test_done_and_then_killed_is_done() -> None:
    child = running()
    assert play(child, Ended(DONE)) == [Publish(DONE)]
    assert child.phase is Phase.LEAVING
    assert play(child, Exited(KILLED)) == [Forget()]


@pytest.mark.parametrize("later", [Ended(FAILED), Crashed(ERROR), BootFailed(ERROR), Ready()], ids=repr)
def test_nothing_counts_behind_a_last_word(later: Event) -> None:
    child = running()
    assert play(child, Ended(DONE), later, Exited(KILLED)) == [Publish(DONE), Forget()]


def test_broken_is_killed_at_once() -> None:
    child = running()
    assert play(child, Broken("no message")) == [Kill()]
    assert play(child, Exited(KILLED)) == [Launch()]
    assert child.cause == Cause("protocol", "no message")


# ------------------------------------------------------------------ the budget of restarts


def crash(child: Child, now: float) -> list[Effect]:
    effects = play(child, Exited(KILLED), now=now)
    if child.phase is not Phase.ENDED:
        play(child, Ready(), now=now)
    return effects


def test_more_than_max_restarts_within_max_seconds_end_the_flow() -> None:
    child = running(max_restarts=3, max_seconds=5.0)
    for now in (1.0, 2.0, 3.0):
        assert crash(child, now) == [Launch()]
    assert crash(child, 4.0) == [Publish(GaveUp(replace(KILLED, spent=spent(3)))), Forget()]


def test_the_window_slides() -> None:
    child = running(max_restarts=2, max_seconds=5.0)
    for now in (0.0, 3.0, 5.1, 8.1, 10.2, 13.2):
        assert crash(child, now)[-1] == Launch()
    assert crash(child, 15.2)[0] == Publish(GaveUp(replace(KILLED, spent=spent(2))))


def test_without_restarts_the_first_crash_is_the_end() -> None:
    assert end(running(max_restarts=0), Exited(KILLED)) == GaveUp(replace(KILLED, spent=spent(0)))


def test_restarts_of_a_permanent_flow_count_too() -> None:
    child = running("permanent", max_restarts=3)
    for _ in range(3):
        play(child, Ended(DONE), Exited(EXIT_0), Ready())
    assert child.incarnation == 4 and child.phase is Phase.RUNNING
    assert end(child, Ended(FAILED), Exited(EXIT_0)) == GaveUp(
        Cause("ended", "failed", spent=spent(3), carried=Encoded(FAILED.reason))
    )


@pytest.mark.parametrize("restart", ["transient", "permanent"])
def test_a_lost_zygote_is_never_charged(restart: str) -> None:
    child = started(restart, max_restarts=0)
    for incarnation in range(2, 2 + 4):  # before it was ever ready
        assert child.incarnation == incarnation - 1 and child.status == "starting"
        assert play(child, Exited(LOST)) == [Launch()]
    assert play(child, Ready()) == [Up(None)]
    for _ in range(20):
        assert play(child, Exited(LOST), Ready()) == [Launch(), Up(LOST)]
    assert end(child, Exited(KILLED)) == GaveUp(replace(KILLED, spent=spent(0)))


def test_a_boot_that_kills_its_zygote_each_time_is_charged() -> None:
    child = started()
    assert play(child, *[Exited(LOST)] * 4) == [Launch()] * 4
    assert end(child, Exited(LOST)) == Refused(LOST)
    child = running()
    assert play(child, *[Exited(LOST)] * 5) == [Launch()] * 5
    assert play(child, Exited(LOST)) == [] and child.status == "restarting", "a pause, as after any boot that fails"


def test_a_temporary_flow_is_not_restarted_by_a_lost_zygote() -> None:
    assert end(running("temporary"), Exited(LOST)) == GaveUp(LOST)
    assert end(started("temporary"), Exited(LOST)) == Refused(LOST)


def test_a_worker_that_crashed_before_its_zygote_was_lost_is_charged() -> None:
    assert end(running(max_restarts=0), Crashed(ERROR), Exited(LOST)) == GaveUp(
        Cause("raised", "ValueError: no", "run[1]", 2, ERROR, spent(0))
    )


# ------------------------------------------------------------------ time


def ladder(child: Child, until: float) -> list[tuple[float, Effect]]:
    """What the clock alone brings, with its times."""
    found: list[tuple[float, Effect]] = []
    while child.deadline is not None and child.deadline <= until:
        now = child.deadline
        assert child.advance(Tick(), now - 1e-6) == []
        found += [(now, effect) for effect in child.advance(Tick(), now)]
        assert child.deadline is None or child.deadline > now
    return found


def test_the_stop_ladder() -> None:
    child = running()
    assert play(child, StopAsked(5.0), now=100.0) == [SendStop()]
    assert ladder(child, 108.0) == [(105.0, Terminate()), (105.5, Kill()), (106.5, Kill()), (107.5, Kill())]
    assert end(child, Exited(KILLED), now=108.0) == Silenced()


def test_stop_without_grace() -> None:
    child = running()
    assert play(child, StopAsked(0.0), now=100.0) == [SendStop()]
    assert ladder(child, 101.0) == [(100.0, Terminate()), (100.5, Kill())]


def test_a_second_stop_can_only_shorten_the_grace() -> None:
    child = running()
    assert play(child, StopAsked(5.0), now=100.0) == [SendStop()]
    assert play(child, StopAsked(60.0), now=101.0) == [] and child.deadline == 105.0
    assert play(child, StopAsked(1.0), now=102.0) == [] and child.deadline == 103.0
    assert ladder(child, 103.5) == [(103.0, Terminate()), (103.5, Kill())]
    assert play(child, StopAsked(0.0), now=103.6) == [] and child.deadline == 104.5


def test_kill_asked_waits_for_nothing() -> None:
    child = running()
    assert play(child, KillAsked(), now=100.0) == [SendStop(), Kill()]
    assert end(child, Exited(KILLED), now=100.0) == Silenced()


def test_kill_asked_in_the_midst_of_a_stop() -> None:
    child = running()
    assert play(child, StopAsked(5.0), KillAsked(), now=100.0) == [SendStop(), Kill()]


@pytest.mark.parametrize("asked", [StopAsked(5.0), KillAsked()], ids=repr)
def test_stopped_before_its_start(asked: Event) -> None:
    child = Child(Policy())
    assert play(child, asked) == [Publish(Silenced()), Forget()]
    assert play(child, StartAsked()) == [] and child.incarnation == 0


@pytest.mark.parametrize("asked", [StopAsked(5.0), KillAsked()], ids=repr)
def test_stopped_between_two_incarnations(asked: Event) -> None:
    child = running()
    play(child, Exited(KILLED), LaunchFailed("EAGAIN"))
    assert child.phase is Phase.BACKOFF
    assert play(child, asked) == [Publish(Silenced()), Forget()]


@pytest.mark.parametrize("answer", [LaunchFailed("EAGAIN"), Exited(KILLED), Exited(LOST)], ids=repr)
def test_stopped_while_it_boots(answer: Event) -> None:
    child = started()
    assert play(child, StopAsked(5.0)) == [SendStop()]
    assert end(child, answer) == Silenced()


def test_ready_while_it_is_stopped() -> None:
    child = started()
    assert play(child, StopAsked(5.0), Ready()) == [SendStop()]
    assert child.phase is Phase.STOPPING and child.deadline == 5.0
    assert end(child, Ended(STOPPED), Exited(EXIT_0)) == STOPPED


def test_stopped_after_its_last_word() -> None:
    child = running()
    assert play(child, Ended(DONE), StopAsked(60.0)) == [Publish(DONE)]
    assert child.deadline == core.LEAVE
    assert play(child, Exited(EXIT_0)) == [Forget()]


@pytest.mark.parametrize("said", [Crashed(ERROR), Broken("no message")], ids=repr)
def test_stopped_while_it_dies(said: Event) -> None:
    """Whoever stops a flow that would be restarted gets it stopped."""
    child = running()
    play(child, said)
    assert play(child, StopAsked(5.0)) == [SendStop()]
    assert end(child, Exited(KILLED)) == Silenced()


def test_a_permanent_flow_is_stopped_between_its_end_and_its_restart() -> None:
    child = running("permanent")
    assert play(child, Ended(DONE), StopAsked(5.0)) == [SendStop()]
    assert end(child, Exited(EXIT_0)) == Silenced()


def test_stopped_at_the_end() -> None:
    child = running()
    play(child, Ended(DONE), Exited(EXIT_0))
    assert play(child, StopAsked(5.0), KillAsked(), Tick()) == []


def test_boot_timeout() -> None:
    child = started(boot_timeout=10.0)
    assert ladder(child, 12.0) == [(10.0, Kill()), (11.0, Kill()), (12.0, Kill())]
    assert end(child, Exited(KILLED), now=12.0) == Refused(Cause("boot", "not ready within 10 s"))


def test_boot_timeout_begins_with_the_process() -> None:
    child = Child(Policy("transient", boot_timeout=10.0))
    play(child, StartAsked())
    play(child, Launched(), now=0.9)  # it has waited for a branch
    assert child.deadline == 10.9
    play(child, Ready(), Launched(), now=1.0)
    assert child.deadline is None


def test_an_engine_that_does_not_launch_is_not_waited_for() -> None:
    child = Child(Policy("transient", boot_timeout=10.0))
    play(child, StartAsked())
    assert ladder(child, 12.0) == [(11.0, Kill()), (12.0, Kill())]


def test_ready_just_after_the_boot_timeout_is_too_late() -> None:
    """Else boots of 10.01 s would go on for ever, never counted as failed, never more than three in five seconds."""
    child = running(boot_timeout=10.0)
    play(child, Exited(KILLED))
    now = 0.0
    for _ in range(4):
        play(child, Launched(), now=now)
        assert play(child, Tick(), now=now + 10.0) == [Kill()]
        assert play(child, Ready(), now=now + 10.01) == []
        assert play(child, Exited(KILLED), now=now + 10.02) == []
        assert child.deadline is not None
        now = child.deadline
        play(child, Tick(), now=now)
    play(child, Launched(), now=now)
    play(child, Tick(), now=now + 10.0)
    assert isinstance(end(child, Ready(), Exited(KILLED), now=now + 11.0), GaveUp)


def test_ready_disarms_the_boot_timeout() -> None:
    child = running()
    assert child.deadline is None
    assert play(child, Tick(), now=1e9) == []


def test_who_said_a_last_word_and_does_not_leave_is_killed() -> None:
    child = running()
    assert play(child, Ended(DONE), now=100.0) == [Publish(DONE)]
    assert ladder(child, 102.0) == [(101.0, Kill()), (102.0, Kill())]


# ------------------------------------------------------------------ every history

SAID: list[Event] = [
    Ready(),
    Ready(),
    Ready(),
    BootFailed(ERROR),
    Crashed(ERROR),
    Ended(DONE),
    Ended(FAILED),
    Ended(STOPPED),
    Broken("no message"),
]
GONE: list[Event] = [LaunchFailed("EAGAIN"), Exited(KILLED), Exited(EXIT_0), Exited(LOST), Exited(KILLED)]
ASKED: list[Event] = [StopAsked(0.0), StopAsked(5.0), KillAsked()]

POLICIES = st.builds(
    Policy,
    restart=st.sampled_from(RESTARTS),
    max_restarts=st.integers(0, 4),
    max_seconds=st.sampled_from([0.1, 1.0, 5.0]),
    boot_timeout=st.sampled_from([0.0, 0.5, 10.0]),
)
STEPS = st.lists(
    st.tuples(
        st.one_of(st.sampled_from(SAID), st.sampled_from(GONE), st.just(Tick()), st.just(Tick())),
        st.sampled_from([0.0, 0.0, 0.3, 1.0, 10.0]),
    ),
    max_size=60,
)


class World:
    """What can happen to a machine: a worker speaks while it lives, and dies once for each launch."""

    def __init__(self, policy: Policy) -> None:
        self.child = Child(policy)
        self.now = 0.0
        self.alive = False
        self.stopped = False
        self.launched = 0
        self.published = 0
        self.forgotten = 0

    def possible(self, event: Event) -> bool:
        return self.alive or not (event in SAID or event in GONE)

    def happen(self, event: Event) -> None:
        if event in GONE:
            self.alive = False
        self.stopped |= event in ASKED
        ended = self.child.phase is Phase.ENDED
        effects = self.child.advance(event, self.now)
        assert not (ended and effects)
        for place, effect in enumerate(effects):
            last = place == len(effects) - 1
            match effect:
                case Launch():
                    assert not self.alive and not self.stopped and last
                    self.launched += 1
                    assert self.child.incarnation == self.launched
                    self.alive = True
                case Publish():
                    self.published += 1
                case Forget():
                    assert not self.alive and self.published == 1 and last
                    self.forgotten += 1
                case Kill() | Terminate():
                    assert self.alive and last  # an engine may report the end within the call
                case SendStop():
                    assert self.alive and self.stopped
                case Up():
                    assert not self.published
        self.check()

    def check(self) -> None:
        child = self.child
        assert self.published <= 1 and self.forgotten <= 1
        assert child.published == bool(self.published)
        assert (child.phase is Phase.ENDED) == bool(self.forgotten)
        assert len(child.history) <= child.policy.max_restarts
        if child.phase in (Phase.ENDED, Phase.RUNNING) or not (self.launched or self.forgotten):
            assert child.deadline is None
        else:
            assert child.deadline is not None
        if child.phase is Phase.RUNNING:
            assert self.alive
        if child.phase is Phase.BACKOFF:
            assert not self.alive

    def wait(self, seconds: float) -> None:
        self.now += seconds


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(POLICIES, STEPS, st.integers(0, 60), st.sampled_from(ASKED))
def test_every_history(policy: Policy, steps: list[tuple[Event, float]], stop_at: int, asked: Event) -> None:
    """Exactly one ``Publish``, ``Forget`` last and with no process alive, never two processes, always an end."""
    world = World(policy)
    if stop_at:
        world.happen(StartAsked())
    for place, (event, seconds) in enumerate(steps):
        world.wait(seconds)
        if place == stop_at:
            world.happen(asked)
        if world.possible(event):
            world.happen(event)
    world.happen(StopAsked(5.0))
    world.happen(StartAsked() if not stop_at else Tick())
    for _ in range(5):  # then the ladder alone, with a worker that answers nothing, brings it to its end
        if world.child.deadline is not None:
            world.now = max(world.now, world.child.deadline)
            world.happen(Tick())
    if world.alive:
        world.happen(Exited(KILLED))
    assert world.published == world.forgotten == 1
    for event in (*SAID, *GONE, *ASKED, Tick(), StartAsked()):
        world.happen(event) if world.possible(event) else None
