"""Hub ids: found in this machine's hub cache, downloaded only when asked, and told in one line when they are not."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from fake_prior import make_prior

from pipeline.cli import main
from pipeline.core.errors import PriorError
from pipeline.prior import hub
from pipeline.prior.identity import find_prior, prior_identity
from pipeline.prior.load import load_prior


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prior(tmp_path_factory.mktemp("priors") / "tiny")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def put(cache: Path, made: Path, commit: str = "a" * 40, ref: str = "main") -> Path:
    """A model in the layout in which the hub's client keeps it: blobs, links to them in a snapshot, refs."""
    place = cache / "models--org--tiny"
    snapshot = place / "snapshots" / commit
    for path in (p for p in made.rglob("*") if p.is_file()):
        blob = place / "blobs" / f"{commit[:4]}-{path.relative_to(made).as_posix().replace('/', '-')}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(made)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / ref).write_text(commit)
    return snapshot


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("org/name", ("org/name", "main")),
        ("org/name-1.5@v1.0", ("org/name-1.5", "v1.0")),
        ("org/name@refs/pr/3", ("org/name", "refs/pr/3")),
        ("name", None),
        ("./org/name", None),
        ("/org/name", None),
        ("a/b/c", None),
        ("org/..", None),
        ("org/name@../x", None),
    ],
)
def test_what_a_hub_id_looks_like(spec: str, parsed: tuple[str, str] | None) -> None:
    found = hub.parse_id(spec)
    assert (found and (found.repository, found.revision)) == parsed


def test_a_cached_model_is_found_by_branch_and_commit(cache: Path, made: Path) -> None:
    snapshot = put(cache, made)
    other = put(cache, made, "b" * 40, "v2")
    assert find_prior("org/tiny") == snapshot and find_prior("org/tiny@v2") == other
    assert find_prior("org/tiny@" + "b" * 40) == other
    prior = load_prior("org/tiny")
    assert prior.name == "org/tiny" and prior.identity == prior_identity(made).identity
    assert prior_identity("org/tiny@v2").name == "org/tiny@v2"


def test_a_folder_here_goes_before_the_hub(cache: Path, made: Path) -> None:
    put(cache, made)
    shutil.copytree(made, Path("org/tiny"))
    assert find_prior("org/tiny") == Path("org/tiny")


def test_what_is_not_here_is_not_fetched(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PriorError, match="latentkiln prior fetch org/tiny@v9") as caught:
        find_prior("org/tiny@v9")
    assert "\n" not in str(caught.value)
    Path("m.csv").write_text("id,prompt,mesh\n")
    assert main(["prior", "show", "org/tiny"]) == 2
    assert "nothing is downloaded unless asked" in capsys.readouterr().err


class Client(types.ModuleType):
    """A stand-in for the hub's client."""

    def __init__(self, files: list[str], folder: Path | None = None):
        super().__init__("huggingface_hub")
        self.files, self.folder, self.patterns = files, folder, []  # type: ignore[var-annotated]

    def list_repo_files(self, repository: str, revision: str) -> list[str]:
        if self.folder is None:
            raise ConnectionError("no route\nto host")
        return self.files

    def snapshot_download(self, repository: str, revision: str, allow_patterns: list[str]) -> str:
        self.patterns = allow_patterns
        return str(self.folder)


def test_fetching_takes_what_loading_needs(
    cache: Path, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    needed = [p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file()]
    more = [
        "README.md", "v1-5-pruned.safetensors", "unet/diffusion_pytorch_model.bin", "safety_checker/model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors",
        "text_encoder/flax_model.msgpack", "vae_decoder/model.onnx", "feature_extractor/preprocessor_config.json",
    ]  # fmt: skip
    client = Client(needed + more, made)
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    assert main(["prior", "fetch", "org/tiny@v1"]) == 0
    assert sorted(client.patterns) == sorted(needed)
    assert prior_identity(made).identity in capsys.readouterr().out
    client.files = [name for name in needed if not name.endswith(".safetensors")] + ["unet/diffusion_pytorch_model.bin"]
    assert main(["prior", "fetch", "org/tiny"]) == 2
    assert "pickled ones are refused" in capsys.readouterr().err


def test_a_hub_that_cannot_be_reached_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", Client([]))
    assert main(["prior", "fetch", "org/tiny"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "cannot be downloaded (ConnectionError: no route to host)" in message
    assert main(["prior", "fetch", "not an id"]) == 2


def test_half_precision_weights_are_taken_where_there_are_no_others(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "half"
    shutil.copytree(made, copy)
    plain = load_prior(copy)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    half = weights.with_name("diffusion_pytorch_model.fp16.safetensors")
    shutil.copy(weights, half)
    # Beside full ones it changes nothing, not even the identity; nor do parts that are never loaded.
    (copy / "safety_checker").mkdir()
    (copy / "safety_checker" / "config.json").write_text("{}")
    assert prior_identity(copy).identity == plain.identity
    weights.unlink()
    assert prior_identity(copy).identity != plain.identity
    assert load_prior(copy).sample_size == plain.sample_size


def test_shards_and_variants_are_told_apart() -> None:
    stem = "unet/diffusion_pytorch_model"
    shard, index, config = f"{stem}-00001-of-00002.safetensors", f"{stem}.safetensors.index.json", "unet/config.json"
    half = [f"{stem}.fp16-00001-of-00002.safetensors", f"{stem}.safetensors.index.fp16.json"]
    only_half = "text_encoder_2/model.fp16.safetensors"
    assert hub.wanted_files([shard, index, *half, config, only_half]) == [only_half, config, shard, index]
