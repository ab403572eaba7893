"""What every backend of the UV kernels shares: the resolution of edge tests and a rule of the packer."""

from __future__ import annotations

# Corners are snapped to this part of a cell, and edges are integers from there on: two faces that share an edge
# never both claim a cell centre, and none falls between them.
SUBCELL = 256
# With more charts than this, the search for a place starts near the last one of a chart of about the same size:
# thirty times faster where there are many, and too wasteful where there are few.
HINTED_CHARTS = 150
