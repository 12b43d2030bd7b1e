"""The builds of a CPU's compiled code that can be tested here."""

import pytest

from dia_engine.kernels.cpu.build import library
from dia_engine.kernels.cpu.variants import VARIANTS, Variant

HERE = [variant for variant in VARIANTS if variant.runs_here()]  # this CPU's, and what others get and it runs as well
# AMX's instructions as plain C, see native/amx.h, on a CPU that has the rest.
BUILDS = HERE + [Variant("amx-emulated", (*each.flags, "-DAMX_EMULATED")) for each in HERE if each.name == "avx512"]
needs_compiled_code = pytest.mark.skipif(library() is None, reason="there is no compiled code")
