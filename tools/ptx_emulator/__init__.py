"""Runs the PTX that Triton compiles for an NVIDIA GPU on a CPU, on tensors in the process's own memory.

Modeled: registers, control flow, shared memory (NaN at first), barriers, `cp.async` (lands at its wait), `mma`,
`ldmatrix`, `stmatrix`, shuffles, atomics; accesses out of bounds, misaligned or ahead of `griddepcontrol.wait` are
refused. Not modeled: time, caches, races between programs, `wgmma`, ptxas and the driver.
"""
