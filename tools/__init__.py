"""Tools for developing the engine; nothing in the engine imports them."""
