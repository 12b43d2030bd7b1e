"""A cluster of this machine with two cores, for all tests of a module."""

import importlib.util
import os

import pytest

from tests.helpers import ROOT

if importlib.util.find_spec("ray") is None:
    collect_ignore_glob = ["test_ray_*.py"]  # the packages of the extra `ray` are not there
else:

    @pytest.fixture(scope="module")
    def cluster():
        """The address of a cluster, whose processes import this checkout."""
        import ray

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
            patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
            patch.delenv("TRITON_INTERPRET", raising=False)
            context = ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
            yield context.address_info["gcs_address"]
            ray.shutdown()
