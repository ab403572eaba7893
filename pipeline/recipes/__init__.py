"""How an asset is made, one module per recipe. This file names them and loads nothing heavy."""

# Raised when a recipe's code changes the bytes of its assets: every asset of the recipe is then built again.
RECIPE_VERSIONS: dict[str, str] = {"paint": "10", "generate": "10"}

# Settings that only say when to give up: raising one must not rebuild the assets that stayed below it.
LIMIT_SETTINGS: dict[str, frozenset[str]] = {
    "paint": frozenset({"max_faces", "max_seconds"}),
    "generate": frozenset({"max_faces", "max_seconds"}),
}

# The field of a row that names the recipe's input mesh (``Job.mesh``).
MESH_FIELDS: dict[str, str] = {"paint": "mesh", "generate": "sketch"}
