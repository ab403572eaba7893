"""Where a prior lies and what it is: resolved and hashed without loading torch."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.content import canonical_json, sha256_bytes, sha256_file
from pipeline.core.errors import PriorError

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "embedded"

# What decides a prior's output. Cards, pictures and the like do not.
_CONTENT_SUFFIXES = {".json", ".txt", ".safetensors", ".model"}
_PICKLE_SUFFIXES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}


@dataclass(frozen=True)
class PriorIdentity:
    """``identity`` is the sha256 over the names and bytes of every file that decides the prior's output."""

    name: str
    folder: Path
    identity: str


def find_prior(spec: str | Path) -> Path:
    """The folder of a prior named on the command line: ``embedded``, or a path to a diffusers folder.

    Raises PriorError when there is no such folder, or it is no StableDiffusionPipeline in diffusers' layout.
    """
    if str(spec) == EMBEDDED:
        folder = EMBEDDED_FOLDER
        if not (folder / "model_index.json").is_file():
            raise PriorError(
                f"the embedded prior is missing from this installation ({folder}); reinstall latentkiln, "
                "or name a diffusers folder with --prior DIR"
            )
        return folder
    folder = Path(spec)
    if folder.suffix in _PICKLE_SUFFIXES:
        raise PriorError(
            f"{folder}: pickled checkpoints can run code and are refused; convert it to a diffusers folder "
            "of .safetensors files and pass that folder"
        )
    if not folder.exists():
        raise PriorError(
            f"{spec}: no such prior; --prior takes 'embedded' or the path of a folder in the diffusers layout "
            "(this version reads local folders and downloads nothing)"
        )
    if not (folder / "model_index.json").is_file():
        raise PriorError(f"{folder}: not a diffusers folder (it has no model_index.json)")
    return folder


def prior_identity(spec: str | Path) -> PriorIdentity:
    """Name, folder and content hash of a prior. Hashes once per process while the files stay as they are.

    Raises PriorError as ``find_prior`` does.
    """
    folder = find_prior(spec)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in _CONTENT_SUFFIXES)
    stamps = tuple((p.relative_to(folder).as_posix(), p.stat().st_size, p.stat().st_mtime_ns) for p in files)
    name = EMBEDDED if str(spec) == EMBEDDED else folder.resolve().name
    return PriorIdentity(name, folder, _hash_files(folder, stamps))


@functools.lru_cache(maxsize=16)
def _hash_files(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    return sha256_bytes(canonical_json([[name, sha256_file(folder / name)] for name, _, _ in stamps]))


def read_config(folder: Path, part: str, name: str = "config.json") -> dict[str, object]:
    """One JSON config of a prior's folder, e.g. ``read_config(folder, "vae")``.

    Raises PriorError when it is missing or no JSON object.
    """
    path = folder / part / name
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PriorError(f"{path}: cannot be read ({error.strerror}); the prior's folder is incomplete") from None
    except ValueError as error:
        raise PriorError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise PriorError(f"{path}: not a JSON object")
    return value
