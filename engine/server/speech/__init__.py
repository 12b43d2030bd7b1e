"""One request: what is to be spoken, its way through the engine, and its response."""
