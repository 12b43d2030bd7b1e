"""What pytest-benchmark's JSON says of the machine."""


def pytest_benchmark_update_machine_info(machine_info):
    """Results are published: they name the hardware, not the machine."""
    machine_info.pop("node", None)


def pytest_addoption(parser):
    parser.addoption("--journal", metavar="FILE", help="append a line for each kernel there, see benchmarks/README.md")
