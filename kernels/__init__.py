"""Kernels of the decode step, one concept per file, imported as `dia_engine.kernels`.

Import the files, not the package.
"""
