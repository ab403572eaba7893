"""Priors from the Hugging Face hub: ``org/name`` or ``org/name@revision``. Loads no torch.

Reads only this machine's hub cache. Downloads only on request.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import PriorError
from pipeline.core.home import home

# The components that we use. Others (safety checkers and similar) are not loaded.
COMPONENTS = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "unet", "vae", "scheduler")
_ROOT_FILES = ("model_index.json", "latentkiln.json", "latent_rgb.json", "words.json")
_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w][\w./-]*))?")
# model.safetensors, diffusion_pytorch_model.fp16-00001-of-00002.safetensors, ...safetensors.index.fp16.json
_WEIGHTS = re.compile(r"(?:model|diffusion_pytorch_model)(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors")
_INDEX = re.compile(r"(?:model|diffusion_pytorch_model)\.safetensors\.index(?:\.(?P<variant>\w+))?\.json")


@dataclass(frozen=True)
class HubId:
    """A model on the hub. ``revision`` is a branch, a tag or a commit."""

    repository: str
    revision: str = "main"

    def __str__(self) -> str:
        return self.repository if self.revision == "main" else f"{self.repository}@{self.revision}"


def parse_id(spec: str) -> HubId | None:
    """Parses ``spec`` as a hub id. Returns None if it has another form."""
    match = _ID.fullmatch(spec)
    return HubId(match[1], match[2] or "main") if match else None


def hub_cache() -> Path:
    """Returns the download cache of the hub's own client on this machine."""
    if named := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(named).expanduser()
    if base := os.environ.get("HF_HOME"):
        return Path(base).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or home() / ".cache") / "huggingface" / "hub"


def cached(model: HubId) -> Path | None:
    """Returns the folder of ``model`` in the hub cache, or None if it is missing."""
    model_folder = hub_cache() / f"models--{model.repository.replace('/', '--')}"
    commit = model.revision
    with contextlib.suppress(OSError, ValueError):  # a commit has no ref of its own
        commit = (model_folder / "refs" / model.revision).read_text(encoding="ascii").strip()
    folder = model_folder / "snapshots" / commit
    return folder if folder.is_dir() else None


def find(model: HubId, *, download: bool = False) -> Path:
    """Returns the folder of ``model``. Downloads it first on request.

    Raises PriorError if it is not in the cache, or cannot be downloaded.
    """
    if download:
        return _download(model)
    folder = cached(model)
    if folder is None:
        raise PriorError(
            f"{model}: no such folder, and not in the hub cache of this machine ({hub_cache()}); nothing is "
            f"downloaded unless asked: latentkiln prior fetch {model}"
        )
    return folder


def wanted_files(names: Iterable[str]) -> list[str]:
    """Lists the files of a repository that loading needs, sorted: configs, tokenizers, one set of safetensors each.

    Includes half-precision copies (``.fp16.``) only for components without others.
    """
    names = sorted(names)
    chosen = [name for name in names if name in _ROOT_FILES]
    for component in COMPONENTS:
        files = {
            name.rsplit("/", 1)[1]: name for name in names if name.startswith(f"{component}/") and name.count("/") == 1
        }
        if component.startswith("tokenizer"):
            chosen += [path for file, path in files.items() if file.endswith((".json", ".txt"))]
            continue
        chosen += [path for file, path in files.items() if file in ("config.json", "scheduler_config.json")]
        variant = weights_variant(files)
        chosen += [path for file, path in files.items() if variant_of(file) == (variant or "")]
    return chosen


def weights_variant(files: Iterable[str]) -> str | None:
    """Returns which of a component's safetensors to load: None for the plain ones, ``fp16`` if only those exist."""
    variants = {variant for file in files if (variant := variant_of(file)) is not None}
    return None if "" in variants or "fp16" not in variants else "fp16"


def variant_of(file: str) -> str | None:
    """Returns the variant (``fp16`` and similar), "" for plain weights, None for a file without weights."""
    match = _WEIGHTS.fullmatch(file) or _INDEX.fullmatch(file)
    return (match["variant"] or "") if match else None


def cached_tokenizers() -> Iterator[Path]:
    """Folders in the hub cache that hold a CLIP vocabulary (``vocab.json`` and ``merges.txt``)."""
    for pattern in ("models--openai--clip-*/snapshots/*", "models--*/snapshots/*/tokenizer"):
        for folder in sorted(hub_cache().glob(pattern)):
            if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
                yield folder


def _download(model: HubId) -> Path:
    import huggingface_hub

    try:
        names = huggingface_hub.list_repo_files(model.repository, revision=model.revision)
        if "model_index.json" not in names:
            raise PriorError(f"{model}: not a pipeline in the diffusers layout (it has no model_index.json)")
        files = wanted_files(names)
        if not any(name.startswith("unet/") and name.endswith(".safetensors") for name in files):
            raise PriorError(f"{model}: it has no .safetensors weights; pickled ones are refused")
        return Path(huggingface_hub.snapshot_download(model.repository, revision=model.revision, allow_patterns=files))
    except PriorError:
        raise
    except Exception as error:  # the client raises its own, the HTTP library's and the system's errors
        reason = " ".join(str(error).split())[:200]
        raise PriorError(
            f"{model}: cannot be downloaded ({type(error).__name__}: {reason}); check the id, the network, "
            "HF_HUB_OFFLINE, and HF_TOKEN for models behind a licence"
        ) from error
