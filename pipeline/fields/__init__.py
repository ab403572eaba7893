"""Radiance fields: grids, networks, volume rendering, sketches, and the scene that optimises a field."""
