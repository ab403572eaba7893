"""Scenes that paint the surface of a mesh: by score distillation, by sampled views, or with a tiled material."""
