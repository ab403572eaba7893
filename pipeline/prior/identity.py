"""Resolves a prior's location and computes its content hash, without torch."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import PriorError
from pipeline.core.hashing import canonical_json, sha256_bytes
from pipeline.prior import hub, single_file
from pipeline.prior.cache import cache_folder, file_hash

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
LATENT_RGB_FILE = "latent_rgb.json"

# Endings of files that determine a prior's output; cards and pictures do not.
_CONTENT_SUFFIXES = {".json", ".txt", ".safetensors", ".model"}
_PICKLE_SUFFIXES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
# Components that we never load.
_UNUSED_COMPONENTS = {"safety_checker", "feature_extractor", "image_encoder"}


@dataclass(frozen=True)
class PriorIdentity:
    """``identity`` is the sha256 over the names and bytes of every file that determines the prior's output.

    ``folder``: the diffusers folder, or a single file's sidecar, which may not exist. ``file``: the single file, or
    None. ``latent_rgb``: the file of the map from latents to colours; it may not exist. ``files_identity``: identity
    without a map in this user's cache.
    """

    name: str
    folder: Path
    identity: str
    file: Path | None = None
    latent_rgb: Path = Path(LATENT_RGB_FILE)
    files_identity: str = ""


def find_prior(spec: str | Path, *, download: bool = False) -> Path:
    """Resolves a prior's name on the command line to its folder or file.

    The name is ``embedded``, a diffusers folder, a ``.safetensors`` file, or a hub id (``org/name`` or
    ``org/name@revision``). A hub id is looked up in this machine's hub cache, and downloaded only with ``download``.
    Raises PriorError.
    """
    if str(spec) == EMBEDDED:
        if not (EMBEDDED_FOLDER / "model_index.json").is_file():
            raise PriorError(
                f"the embedded prior is missing from this installation ({EMBEDDED_FOLDER}); reinstall latentkiln, "
                "or name another with --prior"
            )
        return EMBEDDED_FOLDER
    path = Path(spec)
    if path.suffix.lower() in _PICKLE_SUFFIXES:
        raise PriorError(_no_pickles(path))
    if path.is_file():
        if path.suffix.lower() != single_file.SUFFIX:
            raise PriorError(f"{path}: not a prior; a single file must be a .safetensors checkpoint")
        return path
    if not path.exists():
        if model := hub.parse_id(str(spec)):
            return hub.find(model, download=download)
        raise PriorError(
            f"{spec}: no such prior; --prior takes 'embedded', a diffusers folder, a .safetensors checkpoint, or a "
            "hub id like org/name"
        )
    if not (path / "model_index.json").is_file():
        raise PriorError(f"{path}: not a diffusers folder (it has no model_index.json)")
    return path


def _no_pickles(path: Path) -> str:
    target = path.with_suffix(single_file.SUFFIX)
    program = (
        "import sys,torch,safetensors.torch as s; d=torch.load(sys.argv[1],map_location='cpu',weights_only=True); "
        "s.save_file({k:v.clone().contiguous() for k,v in d.get('state_dict',d).items() if torch.is_tensor(v)},"
        "sys.argv[2])"
    )
    return (
        f"{path}: pickled checkpoints can run code and are refused; convert it with: "
        f'python -c "{program}" {path} {target}'
    )


def prior_identity(spec: str | Path, *, download: bool = False) -> PriorIdentity:
    """Returns name, location and content hash of a prior. Hashes once per process while the files do not change.

    Raises PriorError as ``find_prior`` does.
    """
    path = find_prior(spec, download=download)
    if path.is_file():
        folder, name = single_file.sidecar(path), path.stem
        kind = single_file.family(path)
        # Our configs first, by their names in the package, so that its location does not matter.
        config_files = [(_config_name(p, folder), p) for p in single_file.deciding_files(path, kind)]
        files = [*config_files, ("checkpoint", path)]
    else:
        folder = path
        name = EMBEDDED if str(spec) == EMBEDDED else _name(spec, path)
        files = [(p.relative_to(folder).as_posix(), p) for p in _content_files(folder)]
    identity = files_identity = _hash_files(tuple((key, p, p.stat().st_size, p.stat().st_mtime_ns) for key, p in files))
    latent_rgb = folder / LATENT_RGB_FILE
    if not latent_rgb.is_file():
        # ``prior fit-rgb`` writes this map for a read-only prior; it determines the output too.
        latent_rgb = cached_map(files_identity)
        if latent_rgb.is_file():
            identity = sha256_bytes(canonical_json([identity, file_hash(latent_rgb)]))
    return PriorIdentity(name, folder, identity, path if path.is_file() else None, latent_rgb, files_identity)


def cached_map(files_identity: str) -> Path:
    """Returns the path of the map of a prior whose folder is read-only."""
    return cache_folder() / "latent_rgb" / f"{files_identity}.json"


def _name(spec: str | Path, folder: Path) -> str:
    model = hub.parse_id(str(spec)) if not Path(spec).exists() else None
    return str(model) if model else folder.resolve().name


def _config_name(path: Path, sidecar: Path) -> str:
    for root in (sidecar, single_file.CONFIGS):
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return path.name


def _content_files(folder: Path) -> list[Path]:
    """Lists the files of a diffusers folder that determine its output, sorted, without half-precision copies."""
    files = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in _CONTENT_SUFFIXES):
        parts = path.relative_to(folder).parts
        if parts[0] in _UNUSED_COMPONENTS or any(part.startswith(".") for part in parts):
            continue
        if len(parts) == 1 and path.suffix == single_file.SUFFIX:
            continue  # the same model once more, as a single file
        if path.suffix == single_file.SUFFIX and not _is_loaded(path):
            continue
        files.append(path)
    return files


def _is_loaded(path: Path) -> bool:
    siblings = [p.name for p in path.parent.iterdir()]
    variant = hub.variant_of(path.name)
    return variant is None or variant == (hub.weights_variant(siblings) or "")


@functools.lru_cache(maxsize=16)
def _hash_files(stamps: tuple[tuple[str, Path, int, int], ...]) -> str:
    return sha256_bytes(canonical_json([[name, file_hash(path)] for name, path, _, _ in stamps]))


def read_config(folder: Path, component: str, name: str = "config.json") -> dict[str, Any]:
    """Reads a JSON config of a prior's folder, e.g. ``read_config(folder, "vae")``.

    Raises PriorError if it is missing or not a JSON object.
    """
    path = folder / component / name
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PriorError(f"{path}: cannot be read ({error.strerror}); the prior's folder is incomplete") from None
    except ValueError as error:
        raise PriorError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise PriorError(f"{path}: not a JSON object")
    return value
