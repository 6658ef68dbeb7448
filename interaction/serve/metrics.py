"""Figures of a server in the format of Prometheus."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from interaction.engine import session_events
from interaction.engine.engine import Engine
from interaction.engine.session import Session
from interaction.engine.session_events import SessionEvent
from interaction.types import Reply

_STEP_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.3, 0.5, 1.0)
_COUNTED = ("late", "lost", "refused")  # chunks, by `Stats` of a session
_DELEGATIONS = {
    session_events.ASKED: "asked",
    session_events.FAILED: "failed",
    session_events.CANCELLED: "cancelled",
}


class Metrics(Collector):
    """Figures of an engine and of all sessions that were opened on it."""

    def __init__(self, engine: Engine) -> None:
        """Starts to count; sessions are added by `watch`."""
        self._engine, self._tick = engine, -1
        self._registry = CollectorRegistry()
        self._registry.register(self)
        known = {"registry": self._registry, "namespace": "interaction"}
        self._steps = Histogram("step_seconds", "Time of a step.", buckets=_STEP_S, **known)
        self._delegations = Counter("delegations", "Delegations.", ["what"], **known)
        self._opened = Counter("sessions_opened", "Sessions that were opened.", **known)
        self._ended = Counter("sessions_ended", "Sessions that ended.", ["reason"], **known)
        self._refused = Counter("refused", "Connections and messages refused.", ["code"], **known)
        self._unheard = Counter("unheard", "Replies that a slow reader lost.", **known)
        self._past: dict[str, float] = dict.fromkeys(_COUNTED, 0.0)  # of sessions that ended

    def watch(self, session: Session) -> Callable[[], None]:
        """Counts a session; returns a function to call when it has ended."""
        self._opened.inc()
        session.on_reply(lambda reply: self._reply(session, reply))
        session.subscribe(self._event)

        def end() -> None:
            for name in _COUNTED:
                self._past[name] += getattr(session.stats, name)

        return end

    def _reply(self, session: Session, _: Reply) -> None:
        if self._engine.ticks != self._tick:  # once for all sessions of a step
            self._tick = self._engine.ticks
            self._steps.observe(session.stats.step_s)  # of the step before

    def _event(self, event: SessionEvent) -> None:
        if event.kind in _DELEGATIONS:
            self._delegations.labels(_DELEGATIONS[event.kind]).inc()

    def ended(self, reason: str) -> None:
        """Counts the end of a session, by one of the protocol's reasons."""
        self._ended.labels(reason).inc()

    def refused(self, code: str) -> None:
        """Counts a connection or a message that was refused."""
        self._refused.labels(code).inc()

    def unheard(self, replies: int) -> None:
        """Counts replies that a slow reader lost."""
        self._unheard.inc(replies)

    def collect(self) -> Iterable[Metric]:
        """The figures that stand in the engine; called by the registry."""
        engine = self._engine
        sessions = [session.stats for session in engine.sessions]

        def gauge(name: str, text: str, value: float) -> Metric:
            return GaugeMetricFamily(f"interaction_{name}", text, value=value)

        yield gauge("sessions", "Open sessions.", len(sessions))
        yield gauge("sessions_free", "Sessions that can still be opened.", engine.free)
        delay = max((one.delay_s for one in sessions), default=0.0)
        yield gauge("playout_delay_seconds_max", "Longest delay that jitter asks for.", delay)
        behind = max((one.behind_s for one in sessions), default=0.0)
        yield gauge("behind_seconds_max", "Most sound that waits.", behind)
        yield CounterMetricFamily("interaction_steps", "Micro-turns.", value=engine.ticks)
        yield CounterMetricFamily(
            "interaction_deadlines_missed", "Late micro-turns.", value=engine.missed
        )
        for name in _COUNTED:
            total = self._past[name] + sum(getattr(one, name) for one in sessions)
            yield CounterMetricFamily(f"interaction_chunks_{name}", f"Chunks {name}.", value=total)

    def text(self) -> bytes:
        """All figures, in the text format."""
        return generate_latest(self._registry)
