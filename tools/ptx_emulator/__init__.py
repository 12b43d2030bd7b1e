"""Runs the PTX that Triton compiles for an NVIDIA GPU on a CPU, on tensors in the process's own memory.

What is modeled: every thread's registers and control flow; shared memory, which starts as NaN; barriers; `cp.async`,
whose bytes are read and land only at the wait for their group; the fragment layouts of `ldmatrix`, `stmatrix` and
`mma`; shuffles; atomic additions. Every access to memory is checked: within an argument of the launch or the program's
shared memory, aligned, and, in a dependent launch, not ahead of `griddepcontrol.wait`, but for reads of the arguments
that the launch names as early. Programs (CTAs) run in random order, several in step.

What is not: time, caches and the memory model. Threads run in step, so a missing barrier or fence does not show. Nor do
ptxas and the driver. See `arithmetic` and `warps` for where results may differ from hardware's in the last bit. `wgmma`
and `tcgen05` are not known: `driver.activate` has Triton compile products to `mma`.

An instruction that is not known raises `EmulationError` before anything runs.

Files: `parser` (text to instructions), `numeric` and `operands` (types and values), `arithmetic`, `transfers` and
`warps` (what instructions do), `memory` and `threads` (what they do it to), `execution` (control flow), `driver`
(Triton's view of it), `one_step` and `row_bits` (a check of the kernels).
"""
