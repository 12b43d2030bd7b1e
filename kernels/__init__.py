"""Kernels of the decode step, one concept a file, installed as `engine.kernels`. Import the files, not the package."""
