"""``export``, ``Held`` and ``Importer`` beyond the portability table: nothing stale, nothing twice, nothing unnamed."""

import email.message
import functools
import gc
import importlib
import io
import pickle
import socket
import sqlite3
import subprocess
import sys
import threading
import types
import typing
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from caravela.errors import LimitExceeded, NotPortable
from caravela.flows.outcomes import Ok
from caravela.protocol import functions, mirror, payload
from caravela.protocol.codes import known
from caravela.protocol.functions import Held, Portable, export
from caravela.protocol.homes import name_of
from caravela.protocol.importable import importable
from caravela.protocol.messages import Code, Define
from caravela.protocol.mirror import Importer
from caravela.supervisor.events import FlowState
from caravela.supervisor.handle import FlowHandle
from caravela.supervisor.subscribers import Subscription
from caravela.supervisor.supervisor import Supervisor

SERVE = """
import pickle, sys
from caravela.protocol import payload
from caravela.protocol.messages import Code
from caravela.protocol.mirror import Importer
importer, answers = Importer(), []
for needs, function, arguments in pickle.load(sys.stdin.buffer):
    for need in needs:
        (importer.code if isinstance(need, Code) else importer.define)(need)
    try:
        answers.append(payload.encode(importer.load(function)(*importer.load(arguments))))
    except Exception as error:
        answers.append(payload.encode(repr(error)))
sys.stdout.buffer.write(pickle.dumps(answers))
"""


class Worker:
    """Collects calls and makes them all in one fresh process."""

    def __init__(self) -> None:
        self.held = Held()
        self.frames: list[tuple[list[Code | Define], bytes, bytes]] = []

    def call(self, function: Any, *arguments: Any) -> list[Code | Define]:
        sent = [export(function, what="signal"), export(arguments, what="arguments")]
        needs = self.held.missing([need for portable in sent for need in portable.needs])
        self.frames.append((needs, sent[0].data, sent[1].data))
        return needs

    def answers(self) -> list[Any]:
        done = subprocess.run(
            [sys.executable, "-c", SERVE], input=pickle.dumps(self.frames), stdout=subprocess.PIPE, check=True
        )
        return [payload.decode(answer) for answer in pickle.loads(done.stdout)]


def module(name: str, text: str) -> types.ModuleType:
    """One that no worker can import."""
    made = types.ModuleType(name)
    sys.modules[name] = made
    exec(compile(text, f"<{name}>", "exec"), made.__dict__)
    return made


@pytest.fixture
def unimportable() -> Iterator[Callable[[str, str], types.ModuleType]]:
    before = set(sys.modules)
    yield module
    for name in set(sys.modules) - before:
        del sys.modules[name]


def at_home(portable: Portable) -> Any:
    importer = Importer(home=True)
    for need in portable.needs:
        importer.code(need) if isinstance(need, Code) else importer.define(need)
    return importer.load(portable.data)


# ------------------------------------------------------------------ plain data and names


def test_plain_data_is_a_payload() -> None:
    assert export({"a": (1, 2)}, what="state") == Portable(payload.encode({"a": (1, 2)}))
    assert Importer(home=True).load(payload.encode({})) == {}


@pytest.mark.parametrize("value", [len, Path, functools.partial(Path, "a"), Ok, subprocess.run, pickle])
def test_what_can_be_imported_needs_nothing(value: Any) -> None:
    portable = export(value, what="signal")
    assert portable.needs == ()
    loaded = at_home(portable)
    assert loaded is value or isinstance(loaded, functools.partial)


def test_importable_means_that_the_path_finder_finds_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unimportable: object
) -> None:
    (tmp_path / "found_here.py").write_text("")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "deep.py").write_text("")
    for name in ("found_here", "inner.deep"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__file__ = str(tmp_path / (name.replace(".", "/") + ".py"))
        assert not importable(name)
    monkeypatch.syspath_prepend(str(tmp_path))
    functions.path_changed()
    assert importable("found_here") and importable("inner.deep")
    sys.modules["found_here"].__file__ = "/elsewhere/found_here.py"
    assert not importable("found_here")
    assert all(map(importable, ("sys", "os", "os.path", "_frozen_importlib", "caravela.errors", "msgpack")))
    assert importable(email.message.__name__)
    assert not any(map(importable, ("__main__", "no_such_module")))


@pytest.mark.parametrize("entry", ["", "lib"])
def test_what_a_relative_entry_means_changes_with_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unimportable: object, entry: str
) -> None:
    here = tmp_path / "here"
    (here / "lib").mkdir(parents=True)
    (here / entry / "relative_x.py").write_text("def f(): pass")
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [entry, *(known for known in sys.path if known)])
    found = importlib.import_module("relative_x")
    assert export(found.f, what="signal").needs == ()
    monkeypatch.chdir(tmp_path)
    assert export(found.f, what="signal").needs != ()
    monkeypatch.chdir(here)
    assert export(found.f, what="signal").needs == ()
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert export(found.f, what="signal").needs != ()


@pytest.mark.parametrize("name", ["time", "os", "posixpath"])
def test_a_file_named_like_what_the_interpreter_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    functions.path_changed()
    assert importable(name)
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    assert not importable(name)


@dataclass(frozen=True)
class Named:
    """Stands for a flow: found under a name, or sent flat."""

    place: tuple[str, str] | None
    steps: list[Any]

    def __caravela_name__(self) -> tuple[str, str] | None:
        return self.place

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Named, (self.place, self.steps)


def test_a_flow_goes_by_name_or_flat() -> None:
    assert at_home(export(Named(("os", "path"), [open]), what="flow")) is sys.modules["os"].path
    n = 3
    flat = at_home(export(Named(None, [lambda: n]), what="flow"))
    assert flat.steps[0]() == 3


def test_a_flow_of_a_mirrored_module(unimportable: Callable[[str, str], types.ModuleType]) -> None:
    text = """
import threading
from caravela.flows.builder import flow, repeat, run, sequence, wait_until
lock = threading.Lock()
def push(state): return state["n"] + 1
def locked(state): return lock
fine = flow("fine", repeat(wait_until(lambda s: s["n"]), run(push)), initial_state={"n": 1})
bad = flow("bad", repeat(wait_until(lambda s: s["n"]), sequence(run(push), run(locked))))
call = lambda flow, state: flow.root.steps[0].steps[1].fn(state)
"""
    book = unimportable("books_x", text)
    worker = Worker()
    worker.call(book.call, book.fine, {"n": 1})
    assert worker.answers() == [2]
    with pytest.raises(NotPortable, match=r"global lock of repeat/sequence\[1\]/run\[1\].fn of flow: "):
        export(book.bad, what="flow")


def test_a_name_that_now_means_another_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    before = functools.reduce, email.message.Message.is_multipart
    first = email.message_from_string
    assert at_home(export(first, what="signal")) is first
    monkeypatch.setattr(email, "message_from_string", lambda text: "another")
    sent = at_home(export(first, what="signal"))
    assert sent is not email.message_from_string and sent.__code__ == first.__code__
    assert at_home(export(before, what="state")) == before


# ------------------------------------------------------------------ code


def test_code_goes_once_and_values_every_time() -> None:
    def make(n: Any) -> Callable[[], Any]:
        return lambda: n

    held = Held()
    first, second = export(make(1), what="signal"), export(make([2]), what="signal")
    assert [type(need) for need in held.missing(first.needs)][-1] is Code
    assert held.missing(second.needs) == []
    assert at_home(first)() == 1 and at_home(second)() == [2]


def test_equal_code_of_two_files_stays_two() -> None:
    one, other = (eval(compile("lambda: 1", "<same>", "eval")) for _ in range(2))
    assert one.__code__ == other.__code__
    assert known(one.__code__) is known(one.__code__)
    assert known(one.__code__).message.id != known(other.__code__).message.id


def test_code_that_died_is_forgotten() -> None:
    function = eval("lambda: 1")
    export(function, what="signal")
    dead = weakref.ref(function.__code__)
    del function
    gc.collect()
    assert dead() is None


def test_a_worker_forgets_the_code_that_was_needed_longest_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "CODES", 3)
    worker = Worker()
    made = [eval(f"lambda: {n}") for n in range(5)]
    for function in (*made[:3], made[0], made[3]):
        worker.call(function)
    gone = [need for need in worker.frames[-1][0] if isinstance(need, Code) and not need.code]
    assert [need.id for need in gone] == [known(made[1].__code__).message.id]
    assert worker.call(made[0]) == []
    assert len(worker.call(made[1])) == 2
    assert worker.answers() == [0, 1, 2, 0, 3, 0, 1]


def test_one_send_may_need_more_code_than_a_worker_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "CODES", 2)
    many = [eval(f"lambda: {n}") for n in range(6)]
    worker = Worker()
    worker.call(lambda: sum(one() for one in many))
    worker.call(lambda: "next")
    assert worker.answers() == [15, "next"]


# ------------------------------------------------------------------ mirrors


def test_nothing_stale_and_nothing_twice(unimportable: Callable[[str, str], types.ModuleType]) -> None:
    book = unimportable(
        "books_x", "LIMIT = 1\nBIG = list(range(1000))\ndef limit(): return LIMIT, len(BIG)\nask = lambda: limit()"
    )
    worker = Worker()
    assert {need.name for need in worker.call(book.ask) if isinstance(need, Define)} == {
        "",
        "limit",
        "limit+",
        "LIMIT",
        "BIG",
    }
    assert worker.call(book.ask) == []
    book.__dict__["LIMIT"] = 2
    assert [need.name for need in worker.call(book.ask) if isinstance(need, Define)] == ["LIMIT"]
    book.BIG.append(1)
    assert [need.name for need in worker.call(book.ask) if isinstance(need, Define)] == ["BIG"]
    assert worker.answers() == [(1, 1000), (1, 1000), (2, 1000), (2, 1001)]


def test_a_function_defined_anew_arrives(unimportable: Callable[[str, str], types.ModuleType]) -> None:
    book = unimportable("books_x", "class Kind: n = 1\ndef it(): return Kind.n\nask = lambda: it()")
    worker = Worker()
    worker.call(book.ask)
    exec("class Kind: n = 2", book.__dict__)
    worker.call(book.ask)
    exec("def it(): return 'new', Kind.n", book.__dict__)
    worker.call(book.ask)
    assert worker.answers() == [1, 2, ("new", 2)]


def test_a_name_that_is_not_there_is_left_alone(unimportable: Callable[[str, str], types.ModuleType]) -> None:
    book = unimportable(
        "books_x",
        "def count(n): return len(n)\ndef lost(): return nowhere\nclass Own:\n  lock = 3\ndef own(): return Own().lock",
    )
    book.__dict__["lock"] = threading.Lock()  # only an attribute is called so
    worker = Worker()
    for function, arguments in ((book.count, ([1],)), (book.lost, ()), (book.own, ())):
        worker.call(function, *arguments)
    assert worker.answers() == [1, "NameError(\"name 'nowhere' is not defined\")", 3]


def test_modules_without_a_file_name_each_other(unimportable: Callable[[str, str], types.ModuleType]) -> None:
    unimportable("helpers_x.inner", "N = 4\ndef help(): return N")
    book = unimportable(
        "books_x",
        "import sys\nhelpers = sys.modules['helpers_x.inner']\n"
        "ask = lambda: (helpers.help(), helpers.N, helpers.__name__)",
    )
    worker = Worker()
    worker.call(book.ask)
    assert worker.answers() == [(4, 4, "helpers_x.inner")]


def test_functions_of_executed_text(unimportable: object) -> None:
    namespace: dict[str, Any] = {}
    exec("N = 5\ndef f(): return g() + N\ndef g(): return 1", namespace)
    worker = Worker()
    worker.call(namespace["f"])
    worker.call(lambda f: f(), namespace["f"])
    assert worker.answers() == [6, 6]
    assert at_home(export(namespace["f"], what="signal"))() == 6


def test_a_user_s_own_dunder_names(unimportable: Callable[[str, str], types.ModuleType]) -> None:
    book = unimportable("books_x", "__version__ = '1'\nask = lambda: (__version__, __name__)")
    worker = Worker()
    worker.call(book.ask)
    assert worker.answers() == [("1", "books_x")]


def test_at_home_everything_is_itself(unimportable: Callable[[str, str], types.ModuleType]) -> None:
    book = unimportable(
        "books_x",
        "class Book: pass\ndef make():\n  class Inner: pass\n  return Inner\nadd = lambda n: [*seen, n]\nseen = []",
    )
    assert at_home(export(book.Book, what="state")) is book.Book
    inner = book.make()
    assert type(at_home(export(inner(), what="state"))) is inner
    assert at_home(export(book.add, what="signal")).__globals__ is book.__dict__


def test_many_threads_export_at_once(unimportable: Callable[[str, str], types.ModuleType]) -> None:
    book = unimportable(
        "books_x", "class Book:\n  def year(self): return base\nbase = 1\nask = lambda n: (Book().year(), n)"
    )
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: export(book.ask, what="signal"), range(400)))
    assert all(portable == made[0] for portable in made)


def test_a_class_that_nobody_holds_is_let_go(unimportable: Callable[[str, str], types.ModuleType]) -> None:
    book = unimportable("books_x", "def make():\n  class Inner:\n    def me(self): return Inner\n  return Inner")
    kind = book.make()
    export(kind(), what="state")
    dead = weakref.ref(kind)
    del kind
    gc.collect()
    assert dead() is None


def test_a_module_in_a_module(unimportable: Callable[[str, str], types.ModuleType]) -> None:
    outer = unimportable("outer_x", "")
    inner = unimportable("outer_x.inner", "K = 5\ndef fn(n): return n + K")
    outer.__dict__["inner"], inner.__dict__["outer"] = inner, outer
    book = unimportable("books_x", "import outer_x\nask = lambda n: outer_x.inner.outer.inner.fn(n)")
    worker = Worker()
    worker.call(book.ask, 1)
    assert worker.answers() == [6]


def test_a_mirrored_module_in_an_importable_one(
    unimportable: Callable[[str, str], types.ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(email, "made_x", unimportable("email.made_x", "def fn(): return 7"), raising=False)
    book = unimportable("books_x", "import email\nask = lambda: email.made_x.fn()")
    worker = Worker()
    worker.call(book.ask)
    assert worker.answers() == [7]


# ------------------------------------------------------------------ what has a number for a name

LOCAL = """
def make(n):
    class Local:
        def size(self): return n
        def is_one(self, other): return isinstance(other, Local)
    return Local, (lambda: Local().size()), (lambda other: isinstance(other, Local))
"""


def forgotten(frame: tuple[list[Code | Define], bytes, bytes]) -> list[str]:
    return [need.name or need.module for need in frame[0] if isinstance(need, Define) and not need.value]


def test_a_worker_forgets_the_class_that_was_needed_longest_ago(
    unimportable: Callable[[str, str], types.ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "NUMBERED", 3)
    book, worker = unimportable("books_x", LOCAL), Worker()
    made = [book.make(n) for n in range(5)]
    for n in (0, 1, 2, 0, 3):
        worker.call(made[n][1])
    assert list(map(forgotten, worker.frames)) == [[], [], [], [], [name_of(made[1][0])[1]]]
    assert worker.call(made[0][1]) == []
    assert {need.name for need in worker.call(made[1][1]) if isinstance(need, Define) and need.value} == {
        (name := name_of(made[1][0])[1]),
        f"{name}+",
    }
    assert worker.answers() == [0, 1, 2, 0, 3, 0, 1]


def test_one_send_may_need_more_classes_than_a_worker_keeps(
    unimportable: Callable[[str, str], types.ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "NUMBERED", 2)
    book = unimportable("books_x", LOCAL)
    many = [book.make(n)[1] for n in range(6)]
    worker = Worker()
    worker.call(lambda: sum(one() for one in many))
    assert forgotten(worker.frames[0]) == []
    worker.call(book.make(7)[1])
    assert len(forgotten(worker.frames[1])) == 5
    worker.call(lambda: sum(one() for one in many))
    assert worker.answers() == [15, 7, 15]


def test_a_forgotten_class_that_something_holds_is_the_same_when_it_comes_again(
    unimportable: Callable[[str, str], types.ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "NUMBERED", 1)
    book = unimportable("books_x", LOCAL + "kept = []\nkeep = lambda it: kept.append(it)")
    (kind, _, is_one), (_, other, _) = book.make(1), book.make(2)
    worker = Worker()
    worker.call(book.keep, kind())
    worker.call(other)
    assert forgotten(worker.frames[-1]) == [name_of(kind)[1]]
    worker.call(eval("lambda is_one, it: (is_one(kept[-1]), it.is_one(kept[-1]))", book.__dict__), is_one, kind())
    assert worker.answers() == [None, 2, (True, True)]


def test_an_importer_lets_go_of_what_it_forgets(unimportable: Callable[[str, str], types.ModuleType]) -> None:
    kind, call, _ = unimportable("books_x", LOCAL).make(3)
    namespace: dict[str, Any] = {"__name__": "snippet_x"}
    exec("N = 5\ndef f(): return g() + N\ndef g(): return 1", namespace)
    importer, loaded = Importer(), []
    for function in (call, namespace["f"]):
        portable = export(function, what="signal")
        for need in portable.needs:
            importer.code(need) if isinstance(need, Code) else importer.define(need)
        loaded.append(importer.load(portable.data))
    where = name_of(kind)
    made = weakref.ref(importer.find(*where))
    mirrors = [key for key in importer._mirrors if key.startswith("snippet_x@")]
    importer.define(Define(*where, b""))
    importer.define(Define(mirrors[0], "", b""))
    assert [function() for function in loaded] == [3, 6]  # what was made of it lives on
    loaded.clear()
    gc.collect()
    assert made() is None and not importer._forgotten
    assert mirrors[0] not in importer._mirrors and mirrors[0] not in importer._made
    importer.define(Define(*where, b""))  # a second time is harmless


def test_globals_of_executed_text_are_forgotten_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "NUMBERED", 2)
    worker, made = Worker(), []
    for n in range(4):
        namespace: dict[str, Any] = {"__name__": "snippet_x"}
        exec(f"N = {n}\ndef f(): return g() + N\ndef g(): return 1", namespace)
        made.append(namespace["f"])
    for function in (*made, made[0]):
        worker.call(function)
    assert [len(forgotten(frame)) for frame in worker.frames] == [0, 0, 1, 1, 1]
    assert len(worker.held._defined) == 2
    assert worker.answers() == [1, 2, 3, 4, 1]


def test_what_is_taken_as_sent_twice_is_sent_once(
    unimportable: Callable[[str, str], types.ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "NUMBERED", 1)
    book, held = unimportable("books_x", LOCAL), Held()
    first, second = (export(book.make(n)[1], what="signal").needs for n in range(2))
    held.missing(first)
    lacking = held.lacking(second)
    for _ in range(2):
        held.keep(second, lacking)
    assert held.lacking(second) == [] and len(held._numbered) == 1
    assert held.lacking(first) != []


# ------------------------------------------------------------------ classes whose bases have a say


HOOKED = """
class Wants:
    table = None
    def __init_subclass__(cls, *, table, **rest):
        super().__init_subclass__(**rest)
        cls.table = table
class Checks:
    def __init_subclass__(cls): assert cls.name
"""


def test_a_base_that_wants_keywords_or_attributes_of_its_subclasses(
    unimportable: Callable[[str, str], types.ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bases_x.py").write_text(HOOKED)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    text = """
import bases_x
class Book(bases_x.Wants, dict, table="books"): pass
class Named(bases_x.Checks):
    name = "n"
def later():
    class Later(bases_x.Wants, table="later"): pass
    try:
        class Wrong(bases_x.Wants): pass
    except TypeError:
        return Later.table
ask = lambda: (Book.table, Book(a=1)["a"], Book.__mro__[1] is bases_x.Wants, Named.name, later())
"""
    worker = Worker()
    worker.call(unimportable("books_x", text).ask)
    assert worker.answers() == [("books", 1, True, "n", "later")]


def test_other_threads_make_classes_as_ever_while_hooks_are_off() -> None:
    seen: list[str] = []

    class Base:
        def __init_subclass__(cls, **keywords: Any) -> None:
            seen.append(cls.__name__)

    with mirror._hooks_off((Base, int)), ThreadPoolExecutor(1) as pool:
        type("Mine", (Base,), {})
        pool.submit(type, "Theirs", (Base,), {}).result()
    type("After", (Base,), {})
    assert seen == ["Theirs", "After"]


# ------------------------------------------------------------------ what is there for types

DECORATED = """
import functools, typing
from typing import Callable, Generic, NewType, ParamSpec, TypeVar, TypeVarTuple, Unpack
P, R, Ts = ParamSpec("P"), TypeVar("R", bound="Box", covariant=True), TypeVarTuple("Ts")
_T = TypeVar("T", int, str)
Id = NewType("Other", int)
class Box(Generic[Unpack[Ts]]): pass
def twice(fn: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(fn)
    def inner(*args: P.args, **keywords: P.kwargs) -> R: return fn(fn(*args, **keywords))
    return inner
@twice
def plus(n: int) -> int: return n + 1
def told(n: _T): return [twice(lambda n: n * 3)(n), plus(n), Box[int, str].__args__ == (int, str), Id(n)]
def variables(): return [
    [it.__name__, it.__module__, getattr(it, "__covariant__", None), getattr(it, "__constraints__", None)]
    for it in (P, R, Ts, _T)
]
"""


def test_type_variables_of_a_mirrored_module(unimportable: Callable[[str, str], types.ModuleType]) -> None:
    book = unimportable("books_x", DECORATED)
    worker = Worker()
    worker.call(book.told, 2)
    worker.call(book.variables)
    assert worker.answers() == [[18, 4, True, 2], book.variables()]


def test_type_variables_of_an_importable_module_are_themselves() -> None:
    assert at_home(export([typing.AnyStr], what="state")) == [typing.AnyStr]


BRACKETS = """
import functools, typing
from dataclasses import dataclass
def first[T](items: list[T]) -> T: return items[0]
def wrapped[**P, R: (int, str)](fn: typing.Callable[P, R], *args: P.args, **keywords: P.kwargs) -> R:
    return fn(*args, **keywords)
class Box[T: int, *Ts]:
    def give(self, item: T) -> T: return item
@dataclass
class Held[T]:
    item: T
type Tree = int | list[Tree]
type Branch[T, **P, *Ts] = T | list[Branch[T, P, *Ts]]
type Pair[T] = tuple[T, T]
type Lost = NotThere
def odd[T: NotThere](item: T) -> Lost: return item
def make():
    def local[T](item): return item
    return local
local = make()
def tree(node: Tree, branch: Branch[int, [], str]) -> Pair[int]: return node
def told(): return (
    first([9]), wrapped(int, "3"), Box().give(2), Box[int, str, str]().give(3), Held(4).item, Held[int](5).item, odd(6),
    local(7), tree(8, 0), first.__type_params__[0].__name__, local.__type_params__[0].__name__,
    wrapped.__type_params__[1].__constraints__, wrapped.__type_params__[1].__infer_variance__,
    Box.__type_params__[0].__bound__, str(Box.__type_params__), Tree.__value__.__args__[1].__args__[0] is Tree,
    [Tree.__module__, Tree.__name__], Pair.__value__.__args__ == Pair.__type_params__ * 2, str(Pair[int]),
    str(Branch[int, [], str]), str(Branch.__value__.__args__[1]), str(wrapped.__annotations__["args"]),
)
def lost():
    try: Lost.__value__
    except NameError: return "lost"
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="this syntax began with 3.12")
def test_type_parameters_in_brackets(unimportable: Callable[[str, str], types.ModuleType]) -> None:
    book = unimportable("books_x", BRACKETS)
    worker = Worker()
    worker.call(book.told)
    worker.call(book.lost)
    worker.call(book.local, 3)
    worker.call(lambda function: function.__type_params__[0].__name__, book.local)
    told, *others = worker.answers()
    assert told == book.told() and others == ["lost", 3, "T"]


@pytest.mark.skipif(sys.version_info < (3, 13), reason="defaults of type parameters began with 3.13")
def test_defaults_of_type_parameters(unimportable: Callable[[str, str], types.ModuleType]) -> None:
    book = unimportable(
        "books_x",
        "class Box[T = int, **P = [int]]: pass\nclass Bare[*Ts]: pass\n"
        "def told(): return [str(it.__default__) for it in (*Box.__type_params__, *Bare.__type_params__)]",
    )
    worker = Worker()
    worker.call(book.told)
    assert worker.answers() == [book.told()]


# ------------------------------------------------------------------ what cannot travel

PUSH = """
import threading, sqlite3
CONNECTION = sqlite3.connect(":memory:")
CONFIG = {"a": [threading.Lock()]}
def push(): return CONNECTION
def config(): return CONFIG
class Store:
    lock = threading.Lock()
    def save(self): return CONNECTION
class Clean:
    def save(self): return CONNECTION
by_name = lambda: push()
direct = lambda: CONNECTION
in_config = lambda: config()
in_class = lambda: Store()
in_method = lambda: Clean()
"""


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("by_name", "global CONNECTION of function push, named by signal"),
        ("direct", "global CONNECTION of signal"),
        ("in_config", "global CONFIG['a'][0] of function config, named by signal"),
        ("in_class", "class Store.lock, named by signal"),
        ("in_method", "global CONNECTION of class Clean.save, named by signal"),
    ],
)
def test_the_path_through_globals(unimportable: Callable[[str, str], types.ModuleType], name: str, path: str) -> None:
    book = unimportable("books_x", PUSH)
    try:
        with pytest.raises(NotPortable) as caught:
            export(getattr(book, name), what="signal")
    finally:
        book.CONNECTION.close()
    assert caught.value.path == path


class Handle:
    __caravela_unportable__ = "it stays with its process"


class Exits:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


def closure_of(it: Any) -> Callable[[], Any]:
    return lambda: it


def default_of(it: Any) -> Callable[[], Any]:
    def function(n: int = 1, *, extra: Any = it) -> Any:
        return n, extra

    return function


def test_the_path_in_values() -> None:
    lock = threading.Lock()
    inner = types.SimpleNamespace(lock=lock)
    for value, path in [
        (closure_of(lock), "closure of signal → it"),
        (closure_of({"a": [1, inner]}), "closure of signal → it['a'][1].lock"),
        (closure_of(closure_of(lock)), "closure of closure of signal → it → it"),
        (default_of(lock), "default of signal → extra"),
        (functools.partial(dict, [], end=lock), "signal.keywords['end']"),
        (functools.partial(closure_of(lock)), "closure of signal.func → it"),
        (types.MethodType(lambda self: 1, inner), "signal.__self__.lock"),
        ([0, Handle()], "signal[1]"),
        ({"k": Handle()}, "signal['k']"),
        (lock, "signal"),
    ]:
        with pytest.raises(NotPortable) as caught:
            export(value, what="signal")
        assert caught.value.path == path
    with pytest.raises(NotPortable, match=r"^signal\[0\]: it stays with its process$"):
        export([Handle()], what="signal")


STAY: list[Any] = [
    Supervisor(),
    FlowHandle(types.SimpleNamespace(lock=threading.Lock()), print),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Subscription((FlowState,), 1, print, of_one=True),
]


@pytest.mark.parametrize("it", STAY, ids=lambda it: type(it).__name__)
def test_what_stays_with_its_supervisor_is_to_blame_and_not_its_lock(it: Any) -> None:
    for value, path in [
        (it, "signal"),
        (closure_of({"a": [it]}), "closure of signal → it['a'][0]"),
        (Path.exists.__get__(it), "signal.__self__"),
    ]:
        with pytest.raises(NotPortable) as caught:
            export(value, what="signal")
        assert (caught.value.path, caught.value.why) == (path, it.__caravela_unportable__)


@pytest.mark.parametrize(
    "make", [threading.Lock, threading.RLock, threading.Event, lambda: (n for n in ()), sys._getframe]
)
def test_what_never_travels(make: Callable[[], Any]) -> None:
    with pytest.raises(NotPortable, match=r"closure of signal → it: .* cannot leave its process"):
        export(closure_of(make()), what="signal")


def test_what_is_open_never_travels(tmp_path: Path) -> None:
    with socket.socket() as open_socket, open(tmp_path / "f", "w") as file, sqlite3.connect(":memory:") as connection:
        for it in (open_socket, file, connection, io.FileIO(file.fileno(), closefd=False), sys.stdout):
            with pytest.raises(NotPortable, match=r"signal\[0\]: .* cannot leave its process"):
                export([it], what="signal")
    connection.close()


@pytest.mark.parametrize("error", [SystemExit(3), RecursionError("deep"), ValueError("no"), GeneratorExit()])
def test_whatever_pickling_raises_is_not_portable(error: BaseException) -> None:
    with pytest.raises(NotPortable, match=r"state\['a'\]: Exits cannot be pickled") as caught:
        export({"a": Exits(error)}, what="state")
    assert caught.value.__cause__ is error


def test_an_interrupt_passes() -> None:
    with pytest.raises(KeyboardInterrupt):
        export({"a": Exits(KeyboardInterrupt())}, what="state")


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "PAYLOAD_LIMIT", 1000)
    with pytest.raises(LimitExceeded, match=r"signal has 1,\d+ bytes"):
        export(closure_of(["x" * 1000]), what="signal")
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(LimitExceeded, match="levels"):
        export(deep, what="arguments")
    with pytest.raises(NotPortable):
        export(closure_of([deep, len, object()]), what="signal")


@pytest.mark.parametrize("name", ["os.path", "collections.abc", "importlib._bootstrap"])
def test_a_second_name_of_a_standard_module_is_importable(name: str) -> None:
    importlib.import_module(name)
    assert importable(name)
