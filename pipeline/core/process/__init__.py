"""Processes of this machine: whether one lives, children that end with their parent, and work done in one."""
