"""What engines ask of the machines of a Ray cluster, and how those of a batch job divide them."""

from collections.abc import Mapping, Sequence

from ..messages import shown


def check_device(device: str | None) -> None:
    """Check the device of engines on other machines; None is a GPU where there is one.

    Raises:
        ValueError: neither kind of device, or one device by its number.
    """
    if device not in (None, "cuda", "cpu"):
        raise ValueError(f"device must be cuda or cpu, Ray chooses which GPU; got {shown(device)}")


def share_of_machines(
    machines: Sequence[Mapping[str, float]], engines: int | None, device: str | None
) -> tuple[int, dict[str, float]]:
    """How many engines there are, and what each of them takes of a machine.

    Args:
        machines: the resources of each, by Ray's names, "CPU" and "GPU". A machine may offer neither: the head of a
            cluster often does.
        engines: as asked for; by default one per GPU, or one per machine with CPUs where there is no GPU.
        device: that the engines compute on; None takes GPUs if there are any.

    Returns:
        the number of engines, and `num_gpus` or `num_cpus` of each, as Ray's options.

    Raises:
        ValueError: no machine has the device.
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
