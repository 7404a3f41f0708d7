"""Numbers, places and paths of steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caravela.errors import LimitExceeded
from caravela.flows.plan import KEPT, Plan
from caravela.flows.steps import Debounce, Race, Repeat, Run, Sequence, SetState, Step, Wait, WaitUntil

LEAVES = st.one_of(
    st.builds(Wait, st.integers(0, 1000)),
    st.builds(Run, st.sampled_from([print, repr])),
    st.just(Race((print, dict))),
)


def _holders(inner: st.SearchStrategy[Step]) -> st.SearchStrategy[Step]:
    steps = st.lists(inner, max_size=4).map(tuple)
    return st.builds(Sequence, steps) | st.builds(Repeat, steps)


TREES: st.SearchStrategy[Step] = st.recursive(LEAVES, _holders)
ROOTS = st.builds(Sequence, st.lists(TREES, max_size=4).map(tuple))


def _walked(step: Step) -> list[Step]:
    """Pre-order, the plain way."""
    inner = step.steps if isinstance(step, Sequence | Repeat) else ()
    return [step, *(found for child in inner for found in _walked(child))]


def test_paths_of_the_specifications_flow() -> None:
    body = Sequence((SetState(repr), Run(repr)))
    plan = Plan(Sequence((Repeat((WaitUntil(repr), Debounce(500), body)),)))
    assert [plan.path(node.id) for node in plan.nodes] == [
        "sequence",
        "repeat",
        "repeat/wait_until[0]",
        "repeat/debounce[1]",
        "repeat/sequence[2]",
        "repeat/sequence[2]/set_state[0]",
        "repeat/sequence[2]/run[1]",
    ]
    assert plan.nodes[4].children == (5, 6)
    assert [node.parent for node in plan.nodes] == [-1, 0, 1, 1, 1, 4, 4]
    assert [node.index for node in plan.nodes] == [0, 0, 0, 1, 2, 0, 1]


def test_a_step_in_two_places_has_two_nodes() -> None:
    shared = Sequence((Wait(1),))
    plan = Plan(Sequence((shared, shared)))
    assert [plan.path(id) for id in (2, 4)] == ["sequence[0]/wait", "sequence[1]/wait"]
    assert plan.nodes[2].step is plan.nodes[4].step


def _nested(levels: int) -> Sequence:
    step: Step = Wait(5)
    for _ in range(levels - 1):
        step = Sequence((step,))
    return Sequence((step,))


@pytest.mark.parametrize(
    ("levels", "path"),
    [
        (12, "sequence/" * 11 + "wait"),
        (13, "sequence/" * 6 + "…(1)…" + "/sequence" * 5 + "/wait"),
        (10_000, "sequence/" * 6 + "…(9988)…" + "/sequence" * 5 + "/wait"),
    ],
)
def test_long_paths_are_shortened_in_the_middle(levels: int, path: str) -> None:
    assert Plan(_nested(levels)).path(levels) == path


def test_more_steps_than_memory_holds_are_refused_at_once() -> None:
    step: Step = Wait(1)
    for _ in range(100):
        step = Sequence((step, step))
    with pytest.raises(LimitExceeded, match=r"a flow has 2,535,301,200,456,458,802,993,406,410,752 steps"):
        Plan(Sequence((step,)))
    assert repr(step) == f"<{2**101 - 1:,} steps>"


@given(ROOTS)
def test_nodes_are_in_pre_order(root: Sequence) -> None:
    plan = Plan(root)
    assert [id(node.step) for node in plan.nodes] == [id(step) for step in _walked(root)]
    for at, node in enumerate(plan.nodes):
        assert node.id == at
        assert [plan.nodes[child].parent for child in node.children] == [at] * len(node.children)
        assert [plan.nodes[child].index for child in node.children] == list(range(len(node.children)))
        assert plan.depth(at) == (plan.depth(node.parent) + 1 if at else 0)


@given(ROOTS)
def test_paths_are_unique_until_they_are_shortened(root: Sequence) -> None:
    plan = Plan(root)
    whole = [plan.path(node.id) for node in plan.nodes[1:] if plan.depth(node.id) <= 2 * KEPT]
    assert len(set(whole)) == len(whole)
