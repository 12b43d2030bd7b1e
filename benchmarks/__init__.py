"""Measurements of the engine, beside other runtimes and its own references; see README.md."""
