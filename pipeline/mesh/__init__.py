"""Triangle meshes: readers, normals, primitive solids, winding numbers, iso-surfaces."""
