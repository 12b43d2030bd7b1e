"""From a text to the pieces that are generated one by one."""
