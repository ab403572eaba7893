"""Cameras, and views of meshes: rasterising, texture lookups, antialiasing."""
