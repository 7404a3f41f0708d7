"""The portability table: what is sent, with what arguments, and what must come back.

This text runs as a module that can be imported, as ``__main__`` of every kind, and as a test module of pytest.
A step is a function, its arguments and its result; the steps of a case go to one worker one after the other.
"""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportIncompatibleMethodOverride=false, reportFunctionMemberAccess=false

import abc
import collections
import contextlib
import dataclasses
import enum
import functools
import math
import os.path as paths
import typing

LIMIT = 10
counter = 0
settings = {"factor": 3}
T = typing.TypeVar("T")
UserId = typing.NewType("UserId", int)


def even(n: int) -> bool:
    return n == 0 or odd(n - 1)


def odd(n: int) -> bool:
    return n != 0 and even(n - 1)


def closure(step: int):
    def add(n: int) -> int:
        return n + step

    return add


def recursive():
    def fact(n):
        return 1 if n < 2 else n * fact(n - 1)

    return fact


def mutual():
    def ping(n):
        return "ping" if n == 0 else pong(n - 1)

    def pong(n):
        return "pong" if n == 0 else ping(n - 1)

    return ping, pong


both_ways = mutual()
ping, pong = both_ways


def shared_cell():
    n = 0

    def bump():
        nonlocal n
        n += 1

    return bump, lambda: n


def use_pair(pair):
    pair[0]()
    pair[0]()
    return pair[1]()


def twice(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(function(*args))

    wrapper.marked = True
    return wrapper


@twice
def plus_limit(n):
    """Adds."""
    return n + LIMIT


@functools.lru_cache(maxsize=7)
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


@functools.singledispatch
def area(shape):
    return "unknown"


@area.register
def _(shape: int):
    return shape * shape


@area.register(list)
def _of_list(shape):
    return [area(item) for item in shape]


def local_dispatcher():
    @functools.singledispatch
    def depth(item):
        return 0

    @depth.register
    def _(item: list):
        return 1 + max(map(depth, item), default=0)

    return depth


class Printer:
    mark = "!"

    @functools.singledispatchmethod
    def show(self, item):
        return f"{item}{self.mark}"

    @show.register
    def _(self, item: list):
        return [self.show(inner) for inner in item]

    @functools.singledispatchmethod
    @classmethod
    def kind(cls, item):
        return cls.__name__


@contextlib.contextmanager
def managed(value):
    yield value + 1


def use_managed(n):
    with managed(n) as m:
        return m


class Animal:
    count = 0
    kinds: typing.ClassVar[list] = ["plain"]

    def __init__(self, name):
        self.name = name

    def speak(self):
        return f"{self.name} makes a sound below {LIMIT}"

    @property
    def loud(self):
        return self.name.upper()

    @staticmethod
    def legs():
        return 4

    @classmethod
    def make(cls, name):
        return cls(name)

    @functools.cached_property
    def letters(self):
        return len(self.name)

    def __eq__(self, other):
        return type(other) is type(self) and vars(other) == vars(self)

    class Cage:
        size = 2

        def __eq__(self, other):
            return isinstance(other, Animal.Cage)


class Dog(Animal):
    __slots__ = ("age",)

    def speak(self):
        return super().speak() + ", " + __class__.__name__

    def base_speak(self):
        return super().speak


Animal.favourite = Dog


@dataclasses.dataclass
class Book:
    title: str
    year: int = 1900
    tags: list = dataclasses.field(default_factory=list)

    def older(self):
        return dataclasses.replace(self, year=self.year - LIMIT)


@dataclasses.dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Point:
    x: int
    y: int = 0


class Colour(enum.Enum):
    RED = 1
    GREEN = 2
    ROSE = 1

    @property
    def pretty(self):
        return f"{self.name.lower()} of {len(type(self))}"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mood(str, enum.Enum):  # noqa: UP042
    GOOD = "good"

    def __str__(self):
        return self.value


class Rights(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


class Planet(enum.Enum):
    EARTH = (5.9, 6.3)

    def __init__(self, mass, radius):
        self.mass = mass
        self.radius = radius


class Pair(typing.NamedTuple):
    left: int
    right: int = 2

    def total(self):
        return self.left + self.right


Old = collections.namedtuple("Old", "a b")


class Shape(abc.ABC):
    @abc.abstractmethod
    def size(self): ...


class Square(Shape):
    def size(self):
        return 4


Shape.register(int)


class Box(typing.Generic[T]):
    def __init__(self, item: T):
        self.item = item


class Talker(typing.Protocol):
    def talk(self) -> str: ...


class Registry(type):
    def __new__(cls, name, bases, namespace):
        made = super().__new__(cls, name, bases, namespace)
        made.stamp = "stamped"
        return made


class Stamped(metaclass=Registry):
    pass


class Missing(Exception):
    pass


def local_class():
    class Local:
        size = 3

        def grow(self):
            return self.size + LIMIT

    return Local


Local = local_class()
is_big = lambda n: n > LIMIT  # noqa: E731
rex = Dog("rex")


def count_up():
    global counter
    counter += 1
    return counter


def make_book():
    return Book("Emma", 1815, ["a"])


def match_book(book):
    match book:
        case Book(title, year):
            return isinstance(book, Book), title, year
        case _:
            return "foreign"


def raises():
    try:
        raise Missing("x")
    except Missing as error:
        return str(error)


def change(name, value):
    """What the host does between two steps."""
    globals()[name] = value


def cases():
    yield "recursion through globals", [(even, (10,), True), (lambda n: odd(n), (7,), True)]
    yield "a closure", [(closure(2), (3,), 5), (closure(5), (3,), 8)]
    yield "a closure over objects", [((lambda b: lambda: b.older())(make_book()), (), Book("Emma", 1805, ["a"]))]
    yield "defaults", [((lambda n, m=4, *, k=5: n + m + k), (1,), 10)]
    yield "recursion through a cell", [(recursive(), (5,), 120)]
    yield "mutual recursion through cells", [(mutual()[0], (3,), "pong"), (lambda: ping(2), (), "ping")]
    yield "mutual recursion in a tuple", [(lambda: both_ways[1](1), (), "ping")]
    yield "two functions sharing a cell", [(use_pair, (shared_cell(),), 2)]
    yield "a partial", [(functools.partial(closure(1), 2), (), 3), (functools.partial(even, n=4), (), True)]
    yield "bound methods", [(rex.speak, (), "rex makes a sound below 10, Dog"), (Dog.make, ("a",), Dog("a"))]
    yield "super", [(rex.base_speak(), (), "rex makes a sound below 10"), (lambda: rex.speak(), (), rex.speak())]
    yield (
        "wraps",
        [
            (plus_limit, (1,), 21),
            (lambda: (plus_limit(2), plus_limit.marked, plus_limit.__doc__), (), (22, True, "Adds.")),
        ],
    )
    yield "lru_cache", [(fib, (20,), 6765), (lambda: fib(10) + fib.cache_parameters()["maxsize"], (), 62)]
    yield "singledispatch", [(area, ([2, "x"],), [4, "unknown"]), (lambda: area(3), (), 9)]
    yield "a local singledispatch", [(local_dispatcher(), ([[1]],), 2), (lambda f: f([2]), (local_dispatcher(),), 1)]
    yield (
        "singledispatchmethod",
        [(lambda: Printer().show([1, "a"]), (), ["1!", "a!"]), (Printer.kind, (1,), "Printer")],
    )
    yield "contextmanager", [(use_managed, (1,), 2)]
    yield (
        "classes",
        [
            (lambda: (Dog("a").loud, Dog.legs(), Dog.make("b").letters, Dog.favourite is Dog), (), ("A", 4, 1, True)),
            (lambda d: (isinstance(d, Animal), d.kinds), (rex,), (True, ["plain"])),
            (lambda: Dog("c"), (), Dog("c")),
            (Dog, ("d",), Dog("d")),
        ],
    )
    yield (
        "an inner class",
        [(lambda: Animal.Cage(), (), Animal.Cage()), (lambda c: c == Animal.Cage(), (Animal.Cage(),), True)],
    )
    yield "a local class", [(lambda: Local().grow(), (), 13), (lambda it: isinstance(it, Local), (Local(),), True)]
    yield (
        "a dataclass",
        [
            (make_book, (), Book("Emma", 1815, ["a"])),
            (match_book, (Book("B", 1),), (True, "B", 1)),
            (lambda b: b.older(), (Book("B", 11),), Book("B", 1)),
            (
                lambda b: repr(b) == repr(Book("B")) and dataclasses.asdict(b),
                (Book("B"),),
                {"title": "B", "year": 1900, "tags": []},
            ),
            (lambda: Point(x=1) < Point(x=2) and hash(Point(x=1)) == hash(Point(x=1)), (), True),
            (lambda p: dataclasses.replace(p, x=5), (Point(x=1, y=3),), Point(x=5, y=3)),
            (lambda: [f.name for f in dataclasses.fields(Book)], (), ["title", "year", "tags"]),
        ],
    )
    yield (
        "an enum",
        [
            (
                lambda c: (c is Colour.RED, c.pretty, Colour.ROSE is c, Colour(2), Colour["GREEN"]),
                (Colour.RED,),
                (True, "red of 2", True, Colour.GREEN, Colour.GREEN),
            ),
            (lambda: [*Colour], (), [Colour.RED, Colour.GREEN]),
            (lambda: Level.HIGH + 1, (), 3),
            (lambda v: Level(v), (2,), Level.HIGH),
            (lambda m: (m is Mood.GOOD, m == "good", str(m)), (Mood.GOOD,), (True, True, "good")),
            (lambda r: (r | Rights.WRITE, Rights.READ in r), (Rights.READ,), (Rights.READ | Rights.WRITE, True)),
            (lambda: (Planet.EARTH.mass, Planet((5.9, 6.3))), (), (5.9, Planet.EARTH)),
        ],
    )
    yield (
        "a NamedTuple",
        [
            (lambda p: (p.total(), p._replace(left=5), isinstance(p, Pair)), (Pair(1),), (3, Pair(5, 2), True)),
            (lambda: Pair(1, 3), (), Pair(1, 3)),
            (lambda: Old(1, 2), (), Old(1, 2)),
        ],
    )
    yield (
        "an abstract class",
        [
            (lambda: (isinstance(Square(), Shape), isinstance(3, Shape), Square().size()), (), (True, True, 4)),
            (lambda: Shape.__abstractmethods__, (), frozenset({"size"})),
        ],
    )
    yield (
        "typing",
        [
            (lambda: Box[int](3).item, (), 3),
            (lambda: (UserId(3), Box.__parameters__[0].__name__, Talker.__name__), (), (3, "T", "Talker")),
            (lambda: typing.get_type_hints(even), (), {"n": int, "return": bool}),
        ],
    )
    yield "a metaclass", [(lambda: (Stamped.stamp, type(Stamped) is Registry), (), ("stamped", True))]
    yield "an exception", [(raises, (), "x")]
    yield "a lambda with a name", [(lambda n: is_big(n), (11,), True)]
    yield "modules", [(lambda: (math.floor(2.5), paths.basename("a/b")), (), (2, "b"))]
    yield (
        "two lambdas sharing a global",
        [
            (lambda: settings.update(seen=1) or len(settings), (), 2),
            (lambda: settings.get("seen"), (), 1),
        ],
    )
    yield "what the worker changed stays", [(count_up, (), 1), (lambda: count_up(), (), 2), (lambda: counter, (), 2)]
    yield "an object of a class as state", [(lambda s: s["book"].year, ({"book": Book("B", 7)},), 7)]
    yield (
        "names of its own",
        [(lambda: (__name__.rpartition(".")[2] != "", even.__module__ == __name__), (), (True, True))],
    )
    yield "weak views", [((lambda keys: lambda: sorted(keys))({"b": 1, "a": 2}.keys()), (), ["a", "b"])]


def changes():
    """Only where the module has a mirror: an importable one has its own globals in the worker."""
    yield (
        "a change in the host arrives",
        [
            (lambda n: n > LIMIT, (11,), True),
            (lambda n: change("LIMIT", n), None, 20),
            (lambda n: n > LIMIT, (11,), False),
            (lambda n: change("LIMIT", n), None, 10),
        ],
    )
