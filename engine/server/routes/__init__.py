"""The routes, by whose interface they are."""
