def pytest_benchmark_update_machine_info(machine_info):
    """Results are published: they name the hardware, not the machine."""
    machine_info.pop("node", None)
