"""Triton's driver module, which Triton compiles with the machine's C compiler when it is first used."""

import subprocess

from .dispatch import require_triton, triton


def load_driver() -> None:
    """Have the module that launches kernels compiled and loaded.

    Raises:
        RuntimeError: there is no Triton, or too old a one; or the module cannot be compiled, most likely for want of a
            C compiler or of Python's headers.
    """
    require_triton()
    try:
        _ = triton.runtime.driver.active.utils
    except (RuntimeError, subprocess.CalledProcessError) as error:
        raise RuntimeError(
            "on a GPU Triton needs a C compiler and Python's headers (on Debian: apt install gcc python3-dev); "
            f"it says: {str(error)[:200]}"
        ) from error
