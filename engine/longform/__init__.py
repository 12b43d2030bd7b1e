"""Scripts of any length: planned into pieces, generated side by side, joined to one sound."""
