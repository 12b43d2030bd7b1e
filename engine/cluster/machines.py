"""Devices and resources of engines on a Ray cluster."""

from collections.abc import Mapping, Sequence

from ..messages import shown


def check_device(device: str | None) -> None:
    """Validate the device for engines on other machines. None means a GPU if there is one.

    Raises:
        ValueError: it is neither "cuda" nor "cpu"; a GPU cannot be chosen by its number.
    """
    if device not in (None, "cuda", "cpu"):
        raise ValueError(f"device must be cuda or cpu, Ray chooses which GPU; got {shown(device)}")


def share_of_machines(
    machines: Sequence[Mapping[str, float]], engines: int | None, device: str | None
) -> tuple[int, dict[str, float]]:
    """The number of engines of a batch job, and the resources per engine.

    Args:
        machines: resources per machine, by Ray's names "CPU" and "GPU". Some machines offer neither, such as the head
            node of many clusters.
        engines: number requested by the user; default one per GPU, or without GPUs one per machine that has CPUs.
        device: "cuda", "cpu", or None for GPUs if there are any.

    Returns:
        the number of engines, and Ray's option `num_gpus` or `num_cpus` per engine.

    Raises:
        ValueError: `device` is "cuda" and no machine has a GPU.
    """
    gpus = int(sum(machine.get("GPU", 0) for machine in machines))
    if gpus and device != "cpu":
        return engines or gpus, {"num_gpus": 1}
    if device == "cuda":
        raise ValueError("device is cuda, and no machine of the cluster offers a GPU")
    cores = [machine["CPU"] for machine in machines if machine.get("CPU", 0) >= 1] or [1]
    engines = engines or len(cores)
    per_machine = -(-engines // len(cores))
    return engines, {"num_cpus": max(1, min(cores) // per_machine)}
