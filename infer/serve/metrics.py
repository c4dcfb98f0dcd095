"""Counters of the server, in the form that Prometheus reads."""

from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

_SIZES = (1, 2, 4, 8, 16, 32)
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        into: Any = {"registry": self._registry, "namespace": "dsd"}
        self.waiting = Gauge("queue_images", "Images that wait", **into)
        self.running = Gauge("running_images", "Images under way", **into)
        self.images = Counter("images", "Images made", **into)
        self.batch = Histogram("batch_images", "Images in a step", buckets=_SIZES, **into)
        self.step = Histogram("step_seconds", "Time of a step", buckets=_SECONDS, **into)
        self.requests = Counter("jobs", "Jobs by how they ended", ["status"], **into)
        self.seconds = Histogram("job_seconds", "Time of a job", buckets=_SECONDS, **into)
        self.refused = Counter("refusals", "Requests refused, by HTTP status", ["status"], **into)

    def stepped(self, images: int, seconds: float) -> None:
        """Counts a step."""
        self.batch.observe(images)
        self.step.observe(seconds)

    def ended(self, status: str, seconds: float) -> None:
        """Counts a job that is over, and its time."""
        self.requests.labels(status).inc()
        self.seconds.observe(seconds)

    def text(self) -> bytes:
        """All counters as text."""
        return generate_latest(self._registry)
