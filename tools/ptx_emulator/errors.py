"""What the emulator raises."""


class EmulationError(RuntimeError):
    """A kernel did what a GPU would not allow or leave undefined, or uses an instruction that is not emulated."""
