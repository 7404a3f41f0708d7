"""Who listens to one flow: those of its own and those of its supervisor."""

import threading
from collections.abc import Callable
from typing import Any

from .events import Event, Terminal
from .subscribers import Sink, Subscription, interest, publish


class Audience:
    """``common`` tells the sinks of the supervisor. Changes of what is listened to go to ``tell(level)``."""

    def __init__(self, flow_id: str, tag: Any, own: list[Sink], common: Callable[[], list[Sink]]) -> None:
        self._flow_id, self._tag, self._own, self._common = flow_id, tag, own, common
        self._lock = threading.Lock()
        self._level = 0
        self.incarnation = 1
        self.seq = 0
        """Of the last state announced, or of the terminal event."""
        self.end: Terminal | None = None

    def join(self, sink: Sink) -> None:
        with self._lock:
            self._own = [*self._own, sink]
            end = self.end
        if end is not None:
            sink.offer(end.for_another())

    def leave(self, sink: Sink) -> None:
        with self._lock:
            self._own = [other for other in self._own if other is not sink]

    def level(self) -> int:
        """What the worker must send for all of them; remembered as told to it."""
        with self._lock:
            return self._reckon()

    def tune(self, tell: Callable[[int], None], told: int | None = None) -> None:
        """A frame that nobody reads is not sent. Told under the lock, so that the last word is the latest.

        ``told``: what the worker knows, where it did not hear of every change; by default the last word.
        """
        with self._lock:
            before = self._level if told is None else told
            if (now := self._reckon()) != before:
                tell(now)

    def _reckon(self) -> int:
        self._level = interest([*self._own, *self._common()])
        return self._level

    def publish(self, kind: Callable[..., Event], **fields: Any) -> None:
        sinks = self._own + self._common()
        if sinks:
            publish(sinks, self.event(kind, **fields))

    def conclude(self, end: Terminal, *, quiet: bool) -> None:
        """The one terminal event. Whoever joins later gets it too.

        ``quiet``: ``start`` raises it; of those who are here only they hear of it who would wait for it for ever.
        """
        with self._lock:
            self.end = end
            own = self._own
        if quiet:
            publish([sink for sink in own if isinstance(sink, Subscription)], end)
        else:
            publish(own + self._common(), end)

    def event(self, kind: Callable[..., Event], **fields: Any) -> Any:
        return kind(flow_id=self._flow_id, tag=self._tag, incarnation=self.incarnation, seq=self.seq, **fields)
