"""The tests, a package so that their helpers are imported from the root: `from tests.kernels.helpers import ...`."""
