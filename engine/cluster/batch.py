"""`dia-engine batch --ray`: the lines of a job over Ray Data, an engine in each actor.

Actors speak and encode; the process that was started writes the files and the manifest, as it does without Ray. So a
job needs no shared folder for what it makes, and goes on after a kill of any process as the plain command does: what
the manifest does not list has not been made.
"""

import logging
import pickle
import socket
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError

from ..batch.job import AHEAD, LineRenderer
from ..batch.manifest import Record
from ..batch.script_file import Line
from ..messages import shown
from .arguments import DEFAULT_SLOTS
from .machines import share_of_machines

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5


def check_address(address: str) -> None:
    """Check that something listens at a cluster's address, which Ray would try for minutes.

    Raises:
        ValueError: the address is of another kind.
        ConnectionError: nothing answers there.
    """
    if address in ("", "auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(
            f"--ray must be the host:port of a cluster, got {shown(address)}; from outside: ray job submit"
        )
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"--ray: no cluster answers at {address}: {error.strerror or error}") from None


def run_on_ray(
    load: Callable[[], LineRenderer],
    lines: Sequence[Line],
    address: str,
    actors: int | None = None,
    slots: int | None = None,
    device: str | None = None,
) -> Generator[tuple[Record, bytes], None, None]:
    """Speak lines on a cluster -> their records and the contents of their files, in the order in which they end.

    Args:
        load: gives an actor its renderer; pickled.
        address: of the cluster, checked; "" for the one that runs here, or a new one of this machine.
        actors: engines; by default one per GPU, or one per machine without any.
        slots: requests that run in an engine at the same time.
        device: that the engines compute on.

    Raises:
        ConnectionError: what answers at the address is no cluster.
        ValueError: no machine of the cluster has the device.
        RuntimeError: what ended the job, such as an engine that could not be loaded.
    """
    ray.init(address or None, log_to_driver=False, logging_level=logging.ERROR)
    try:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        count, resources = share_of_machines(machines, actors, device)
        _warn_if_busy(count, resources)
        yield from _made(load, lines, slots or DEFAULT_SLOTS, count, resources)
    finally:
        ray.shutdown()


def _warn_if_busy(actors: int, resources: Mapping[str, float]) -> None:
    """Say why nothing happens: Ray waits in silence until there is room."""
    free = ray.available_resources()
    for option, name in {"num_cpus": "CPU", "num_gpus": "GPU"}.items():
        wanted = actors * resources.get(option, 0)
        if wanted > free.get(name, 0):
            logger.warning(
                "%d engines take %g %s, and the cluster has %g free: some start when there is room",
                actors, wanted, name, free.get(name, 0),
            )  # fmt: skip


def _made(
    load: Callable[[], LineRenderer], lines: Sequence[Line], slots: int, actors: int, resources: Mapping[str, float]
) -> Generator[tuple[Record, bytes], None, None]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised too
    # A block per line, and as many in an actor as keep its slots busy: no line waits for the end of another's batch.
    tasks = slots + AHEAD
    pool = ray.data.ActorPoolStrategy(
        size=actors, max_tasks_in_flight_per_actor=tasks, enable_true_multi_threading=True
    )
    options: dict[str, Any] = {"compute": pool, "max_concurrency": tasks, **resources}
    rows = [{"line": pickle.dumps(line)} for line in lines]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    try:
        for row in dataset.map(_Actor, fn_constructor_args=(load,), **options).iter_rows():
            yield pickle.loads(row["made"])
    except RayError as error:
        # Ray puts the traceback of the other process first.
        raise RuntimeError(f"Ray ended the job: {str(error).strip().splitlines()[-1]}") from None


class _Actor:
    """A process with an engine, whose threads each speak a line at a time."""

    def __init__(self, load: Callable[[], LineRenderer]):
        self._renderer = load()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        record, content = self._renderer.render(pickle.loads(row["line"]))
        return {"made": pickle.dumps((record, content))}
