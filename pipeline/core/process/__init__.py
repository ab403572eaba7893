"""Processes of this machine: liveness checks, and child processes that end with their parent."""
