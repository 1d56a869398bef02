"""Runs steps, saves and restores them, in one process, many, or several nodes."""
