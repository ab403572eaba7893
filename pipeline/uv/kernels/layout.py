"""Constants that the backends of the UV kernels share: the resolution of edge tests and a rule of the packer."""

from __future__ import annotations

# Corners are snapped to this fraction of a cell, so that edge tests use integers: two faces that share an edge never
# both claim a cell centre, and no centre falls between them.
SUBCELL = 256
# With more charts than this, the search for a position starts near that of the last chart of about the same size. For
# many charts this is thirty times faster; for few it wastes too much space.
HINTED_CHARTS = 150
