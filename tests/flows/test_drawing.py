"""Flows as text and as Mermaid; the Mermaid was tried with Mermaid's own parser when it was written down."""

from textwrap import dedent
from typing import Any

from caravela.flows import debounce, each, flow, parallel, race, repeat, run, sequence, set_state, wait, wait_until


def push_book(state: Any) -> None: ...
def fetchers(state: Any) -> None: ...
def insert_book(book: Any, state: Any) -> None: ...
def mirror() -> None: ...


sync_book = flow(
    "sync_book",
    repeat(
        wait_until(lambda s: s["dirty"]),
        debounce(500),
        sequence(
            set_state(lambda s: s | {"dirty": "processing"}),
            run(push_book, retries=3, backoff="exponential", base_delay=200),
        ),
    ),
    initial_state={"dirty": False, "book_id": None},
)
_root: Any = sync_book.root
LINE = _root.steps[0].steps[0].pred.__code__.co_firstlineno

import_books = flow(
    "import_books",
    sequence(parallel(fetchers, collect_as="fetched"), each("fetched", insert_book)),
    initial_state={"urls": [], "results": []},
)


def test_tree_of_sync_book() -> None:
    assert str(sync_book) == dedent(
        f"""\
        flow sync_book
        └─ repeat
           ├─ wait_until <lambda> (test_drawing.py:{LINE})
           ├─ debounce 500 ms
           └─ sequence
              ├─ set_state <lambda> (test_drawing.py:{LINE + 3})
              └─ run push_book, retries=3, backoff=exponential, base_delay=200 ms"""
    )


def test_tree_of_import_books() -> None:
    assert str(import_books) == dedent(
        """\
        flow import_books
        └─ sequence
           ├─ parallel fetchers, collect_as=fetched
           └─ each fetched, insert_book"""
    )


def test_tree_draws_bars_beside_what_follows() -> None:
    drawn = str(flow("f", sequence(wait(0.5), sequence()), race([mirror, mirror], timeout=1500), debounce(1, 2)))
    assert drawn == dedent(
        """\
        flow f
        ├─ sequence
        │  ├─ wait 0.5 ms
        │  └─ sequence
        ├─ race [mirror, mirror], timeout=1500 ms
        └─ debounce 1 ms, max_wait=2 ms"""
    )
    assert str(flow("with\nnewline")) == r"flow 'with\nnewline'"


def test_tree_stops_moving_to_the_right() -> None:
    step: Any = sequence(wait(5), wait(6))
    for _ in range(9_998):
        step = sequence(step)
    lines = str(flow("deep", step)).splitlines()
    assert len(lines) == 10_002
    margin = " " * 3 * 40
    assert lines[40] == f"{margin[3:]}└─ sequence"
    assert lines[41] == f"{margin}[41] sequence"
    assert lines[-2:] == [f"{margin}[10000] wait 5 ms", f"{margin}[10000] wait 6 ms"]


def test_expression_is_one_line_of_the_dsl() -> None:
    assert repr(sync_book) == (
        "flow('sync_book', repeat(wait_until(<lambda>), debounce(500), sequence(set_state(<lambda>), "
        "run(push_book, retries=3, backoff='exponential', base_delay=200))), "
        "initial_state={'dirty': False, 'book_id': None})"
    )
    assert repr(race([mirror], "first", 5)) == "race([mirror], collect_as='first', timeout=5)"
    assert repr(sequence()) == "sequence()"


# ------------------------------------------------------------------ Mermaid


def test_mermaid_of_sync_book() -> None:
    assert sync_book.mermaid() == dedent(
        """\
        flowchart TD
            start(["sync_book"])
            subgraph n1["repeat"]
                n2{"wait_until #lt;lambda#gt;"}
                n3{{"debounce 500 ms"}}
                subgraph n4["sequence"]
                    n5("set_state #lt;lambda#gt;")
                    n6["run push_book<br/>retries=3<br/>backoff=exponential<br/>base_delay=200 ms"]
                end
            end
            start --> n2
            n2 --> n3
            n3 --> n5
            n5 --> n6
            n6 -. again .-> n2
        """
    )


def test_mermaid_of_import_books() -> None:
    assert import_books.mermaid() == dedent(
        """\
        flowchart TD
            start(["import_books"])
            subgraph n1["sequence"]
                n2[["parallel fetchers<br/>collect_as=fetched"]]
                n3[/"each fetched, insert_book"/]
            end
            done(["done"])
            start --> n2
            n2 --> n3
            n3 --> done
        """
    )


def test_mermaid_escapes_what_it_would_read_as_syntax() -> None:
    name = '%%{init: {"a":1}}%% `b` <c> & #d;'
    assert flow(name).mermaid().splitlines()[1] == (
        '    start(["#37;#37;{init#58; {#quot;a#quot;#58;1}}#37;#37; #96;b#96; #lt;c#gt; #amp; #35;d;"])'
    )


def test_mermaid_leads_no_edge_out_of_a_repeat() -> None:
    chart = flow("f", repeat(repeat(wait(1)), wait(2)), wait(3)).mermaid()
    edges = [line.strip() for line in chart.splitlines() if "--" in line or "-." in line]
    assert edges == ["start --> n3", "n3 -. again .-> n3", "n4 -. again .-> n3", "n5 --> done"]


def test_mermaid_of_nothing() -> None:
    assert flow("f", sequence()).mermaid() == dedent(
        """\
        flowchart TD
            start(["f"])
            done(["done"])
            start --> done
        """
    )


def test_mermaid_leaves_out_holders_below_level_100() -> None:
    step: Any = wait(5)
    for _ in range(9_999):
        step = repeat(step)
    chart = flow("deep", step).mermaid().splitlines()
    assert sum(line.lstrip().startswith("subgraph") for line in chart) == 100
    assert sum(line.strip() == "end" for line in chart) == 100
    assert chart[-1] == "    n10000 -. again .-> n10000"
