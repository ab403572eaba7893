"""Triangle meshes without learning: reading, normals, solids, winding numbers, iso-surfaces."""
