"""Metrics for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 40, 80)
STEP_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5)
FACTORS = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 8, 12, 20, 50)
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
OUTCOMES = ("finished", "aborted", "failed", "refused")


class Metrics:
    """What a server counts, in a registry of its own.

    Attributes:
        in_launch: requests and pieces of scripts that took part in the last launch.
    """

    def __init__(self) -> None:
        self.in_launch = 0
        registry = self.registry = CollectorRegistry()
        self.requests = Counter("dia_requests", "Requests for speech by how they ended", ["outcome"], registry=registry)
        self.sent_seconds = Counter(
            "dia_sent_audio_seconds", "Seconds of audio sent, by how the request ended", ["outcome"], registry=registry
        )
        for outcome in OUTCOMES:  # there from the start, or a rate misses the first of each
            self.requests.labels(outcome)
            self.sent_seconds.labels(outcome)
        self.audio_seconds = Counter("dia_audio_seconds", "Seconds of audio generated", registry=registry)
        self.steps = Counter("dia_steps", "Decode steps", registry=registry)

        def histogram(name: str, meaning: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return Histogram(name, meaning, buckets=buckets, registry=registry)

        self.first_audio = histogram("dia_first_audio_seconds", "From the request to its first encoded audio")
        self.queue = histogram("dia_queue_seconds", "From the request to its slot")
        self.request = histogram("dia_request_seconds", "From the request to the end of its audio")
        self.real_time = histogram("dia_real_time_factor", "Seconds of audio per second of generation", FACTORS)
        self.underrun = histogram(
            "dia_underrun_seconds", "Longest pause of a player that starts with the first chunk", (0.0, *SECONDS)
        )
        self.step = histogram("dia_step_seconds", "One decode step of all running requests", STEP_SECONDS)
        self.rows = histogram("dia_batch_rows", "Slots that took part in a launch of decode steps", ROWS)
        self.model = Gauge(
            "dia_model_info", "1, labeled with the model", ["model", "dtype", "device"], registry=registry
        )

    def gauge(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(name, meaning, registry=self.registry).set_function(value)

    def launched(self, steps: int, requests: int, seconds: float) -> None:
        """Called by the engine's thread after each launch."""
        self.steps.inc(steps)
        self.step.observe(seconds / steps)
        self.rows.observe(requests)
        self.in_launch = requests

    def page(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
