"""Cameras, and what they see of a mesh: rasterising, texture lookups, antialiasing."""
