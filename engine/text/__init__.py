"""Scripts and their bytes: what a user writes, and the ids that a model reads."""
