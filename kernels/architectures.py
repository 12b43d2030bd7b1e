"""Facts of GPU architectures that decide what fits, by the name that `dispatch.architecture` gives."""

# Bytes of shared memory that one program may use.
SHARED_MEMORY_LIMIT: dict[int | str, int] = {
    75: 65536,
    80: 166912,
    86: 101376,
    87: 166912,
    89: 101376,
    90: 232448,
    100: 232448,
    103: 232448,
    120: 101376,
    121: 101376,
    "gfx942": 65536,
    "gfx1100": 65536,
}
LEAST_LIMIT = min(SHARED_MEMORY_LIMIT.values())
