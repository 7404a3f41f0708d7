"""Frozen options, checked where they are given."""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

Restart: TypeAlias = Literal["permanent", "transient", "temporary"]
Trust: TypeAlias = Literal["pickle", "data"]

LONGEST: Final = 2_000_000.0
"""Seconds, 23 days: poll(2) counts milliseconds in 31 bits."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How one flow is kept alive. Times in seconds; the words are OTP's (Erlang/OTP *supervisor* behaviour).

    More than ``max_restarts`` restarts within ``max_seconds`` end the flow, and it alone.
    """

    restart: Restart = "transient"
    max_restarts: int = 3
    max_seconds: float = 5.0
    shutdown: float = 5.0
    boot_timeout: float = 10.0
    trust: Trust = "pickle"

    def __post_init__(self) -> None:
        one_of("restart", self.restart, get_args(Restart))
        one_of("trust", self.trust, get_args(Trust))
        if type(self.max_restarts) is not int:
            raise TypeError(f"max_restarts={self.max_restarts!r} must be an int")
        if self.max_restarts < 0:
            raise ValueError(f"max_restarts={self.max_restarts} must not be negative")
        for name in ("max_seconds", "shutdown", "boot_timeout"):
            seconds(name, getattr(self, name))
        if self.max_seconds == 0:
            raise ValueError(f"max_seconds={self.max_seconds} must be above 0; for no restarts: max_restarts=0")


def modules(preload: object) -> tuple[str, ...] | None:
    """None where nothing is to be preloaded, not even a flow's own module."""
    if preload is False:
        return None
    if not isinstance(preload, tuple | list) or not all(isinstance(name, str) for name in preload):
        raise TypeError(f"preload={preload!r} must be a tuple of names of modules, or False")
    for name in preload:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"preload={preload!r}: {name!r} is not the name of a module")
    return tuple(preload)


def check_engine(engine: object) -> None:
    if engine == "spawn":
        raise NotImplementedError("engine='spawn' comes with the support of platforms that cannot fork")
    one_of("engine", engine, ("process", "inline"))


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: allowed are {', '.join(map(repr, allowed))}")


def seconds(name: str, value: object) -> None:
    """Raises for what is no number of seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r} must be a number of seconds")
    if not 0 <= value <= LONGEST:
        raise ValueError(f"{name}={value!r} must be between 0 and {LONGEST:,.0f} seconds")
