"""Checkpoint files: locating them, and reading and writing each format."""
