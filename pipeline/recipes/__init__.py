"""Recipes, which build assets, in one module each. This file has their names and versions, and loads nothing heavy."""

# Raised when a recipe's code changes the bytes of its assets: every asset of the recipe is then built again.
RECIPE_VERSIONS: dict[str, str] = {"paint": "11", "generate": "10", "material": "1"}

# ... and where the recipe's mesh is a document, which is written back as the glTF that it is or that it becomes.
DOCUMENT_VERSIONS: dict[str, str] = {"paint": "12"}
_DOCUMENTS = (".gltf", ".glb", ".fbx", ".dae", ".3ds", ".usd", ".usda", ".usdc", ".usdz")


def recipe_version(recipe: str, mesh: str) -> str:
    """The version of a recipe for an input mesh of that name; "" where there is none."""
    is_document = mesh.lower().endswith(_DOCUMENTS)
    return DOCUMENT_VERSIONS.get(recipe, RECIPE_VERSIONS[recipe]) if is_document else RECIPE_VERSIONS[recipe]


# Settings that only limit time or size: raising one must not rebuild the assets that stayed below it.
LIMIT_SETTINGS: dict[str, frozenset[str]] = {
    "paint": frozenset({"max_faces", "max_seconds"}),
    "generate": frozenset({"max_faces", "max_seconds"}),
    "material": frozenset({"max_seconds"}),
}

# The field of a row that names the recipe's input mesh (``Job.mesh``); recipes that read none are not here.
MESH_FIELDS: dict[str, str] = {"paint": "mesh", "generate": "sketch"}

# The phases of all recipes in the order in which they run: a phase's name on disk, and its stage in progress reports
# and timings.
PHASE_STAGES: dict[str, str] = {"latent": "distill", "rgb": "refine", "texture": "texture"}
