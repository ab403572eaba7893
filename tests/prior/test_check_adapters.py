"""LoRAs and concepts that cannot be used are told by ``check``, from their headers, before anything is loaded."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_variants import make_concept, make_diffusers, make_lora, make_single_file
from safetensors.numpy import save_file
from thirty_bad_rows import write_tetrahedron

from pipeline import cli
from pipeline.core.errors import PriorError
from pipeline.core.job import AdapterFile
from pipeline.core.location import InputFile
from pipeline.prior.adapters import lora_layers
from pipeline.prior.job_check import JobChecker, job_checker
from pipeline.prior.layers import prior_layers
from pipeline.prior.load import Prior, load_prior

Write = Callable[[Path], object]

LAYER = "lora_unet_mid_block_attentions_0_proj_in"
# Of SDXL's UNet, deeper than that of SD 1.x.
XL = "lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_k"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("priors")
    return {kind: make_diffusers(root / kind, kind) for kind in ("sd1", "sd2", "sdxl")}


@pytest.fixture(scope="module")
def prior(folders: dict[str, Path]) -> Prior:
    return load_prior(folders["sd1"])


def tensors(**shapes: tuple[int, ...]) -> Write:
    named = {name.replace("__", "."): np.zeros(shape, np.float32) for name, shape in shapes.items()}
    return lambda path: save_file(named, path)


def pair(layer: str, down: tuple[int, ...], up: tuple[int, ...]) -> Write:
    return tensors(**{f"{layer}__lora_down__weight": down, f"{layer}__lora_up__weight": up})


def raw(data: bytes) -> Write:
    return lambda path: path.write_bytes(data)


def header(value: Any, data: bytes = b"") -> Write:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return raw(struct.pack("<Q", len(text)) + text + data)


def cut(count: int) -> Write:
    def write(path: Path) -> None:
        pair(LAYER, (2, 16, 1, 1), (16, 2, 1, 1))(path)
        os.truncate(path, path.stat().st_size - count if count > 0 else -count)

    return write


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}

BAD: dict[str, tuple[str, Write, str]] = {
    "missing": ("lora", lambda path: None, "there is no file"),
    "empty": ("lora", raw(b""), "is an empty file"),
    "folder": ("lora", lambda path: path.mkdir(), "is a folder"),
    "short": ("lora", raw(b"1234567"), "not a safetensors file (it has 7 bytes)"),
    "header cut": ("lora", cut(-40), "longer than the file: truncated"),
    "data cut": ("lora", cut(8), "it is truncated: it has 248 of the 256 bytes"),
    "data too long": ("lora", header({"a": ENTRY}, b"\0" * 17), "1 bytes follow its tensors"),
    "zip": ("lora", raw(b"PK\x03\x04" + b"\0" * 100), "it is a zip file"),
    "pickle": ("concept", raw(b"\x80\x02}q\x00X\x05\x00\x00\x00" + b"\0" * 9), "it is a pickle"),
    "pointer": ("lora", raw(POINTER), "it is a Git LFS pointer, not the file itself; run: git lfs pull"),
    "web page": ("concept", raw(b"<!DOCTYPE html><html>Sign in</html>"), "it is a web page"),
    "absurd header": ("lora", raw(b"\xff" * 8 + b"{}" * 40), "longer than the file"),
    "no JSON": ("lora", header(b"x" * 64), "its header is not JSON"),
    "deep JSON": ("lora", header(b"[" * 100_000), "not a safetensors file"),
    "a list": ("lora", header([1, 2]), "its header is damaged"),
    "wrong offsets": ("lora", header({"a": {**ENTRY, "data_offsets": [4, 20]}}, b"\0" * 20), "is wrong: damaged"),
    "wrong length": ("lora", header({"a": {**ENTRY, "shape": [2, 3]}}, b"\0" * 16), "16 bytes for 6 numbers"),
    "a checkpoint": ("lora", tensors(model__diffusion_model__out__weight=(4, 4)), "not a LoRA: it has a tensor"),
    "nothing": ("lora", header({}), "not a LoRA: it has no matrices"),
    "DoRA": ("lora", tensors(unet__mid__dora_scale=(1,)), "only plain LoRA is supported"),
    "of SDXL": ("lora", pair(XL, (2, 2048), (1280, 2)), "is not in this prior (made for another model?)"),
    "other width": ("lora", pair(LAYER, (2, 320, 1, 1), (320, 2, 1, 1)), "this prior's are (16, 16, 1, 1)"),
    "ranks differ": ("lora", pair(LAYER, (2, 16, 1, 1), (16, 3, 1, 1)), "matrices of the ranks 2 and 3"),
    "rank 0": ("lora", pair(LAYER, (0, 16, 1, 1), (16, 0, 1, 1)), "do not form a LoRA"),
    "one matrix": ("lora", tensors(**{f"{LAYER}__lora_down__weight": (2, 16, 1, 1)}), "is missing a matrix"),
    "two alphas": ("lora", tensors(**{f"{LAYER}__alpha": (2,)}), "is not a single number"),
    "concept of SD 2": ("concept", tensors(emb_params=(2, 1024)), "have 1024 numbers, this prior's text encoders"),
    "concept of SDXL": ("concept", tensors(clip_l=(1, 16), clip_g=(1, 24)), "text encoders take 16"),
    "a LoRA as concept": ("concept", pair(LAYER, (2, 16, 1, 1), (16, 2, 1, 1)), "name it in the field 'lora'"),
    "no vectors": ("concept", tensors(emb_params=(0, 16)), "has no vectors"),
    "no word": (
        "concept",
        lambda path: save_file({" ": np.zeros((1, 16), np.float32)}, path),
        "one of its words is empty",
    ),
    "blanks": (
        "concept",
        lambda path: save_file({"a  toy": np.zeros((1, 16), np.float32)}, path),
        "has blanks in it that no prompt has",
    ),
    "word twice": (
        "concept",
        lambda path: save_file({"Toy": np.zeros((1, 16), np.float32), "toy": np.zeros((1, 16), np.float32)}, path),
        "occurs twice",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_told_by_check_and_refused_by_the_prior(
    name: str, prior: Prior, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, write, words = BAD[name]
    path = tmp_path / "x.safetensors"
    write(path)
    write_tetrahedron(tmp_path / "box.obj")
    manifest = tmp_path / "m.csv"
    # The second row is wrong in another way as well: all of it is told.
    manifest.write_text(f"id,prompt,mesh,steps,{kind}\na,red brick,box.obj,,{path.name}\nb,red,box.obj,0,{path.name}\n")
    assert cli.main(["check", str(manifest), "--prior", str(prior.folder)]) == 2
    lines = [line.removeprefix(str(manifest)) for line in capsys.readouterr().out.splitlines()]
    told = [line for line in lines if f" {kind}: " in line]
    assert [line.split(":")[1] for line in told] == ["2", "3"]
    assert all(path.name in line and words in line for line in told), told
    with pytest.raises((PriorError, OSError)):
        prior.adapters([AdapterFile(kind, InputFile(path))])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("single", [False, True])
def test_headers_name_the_layers_that_the_loaded_prior_has(
    kind: str, single: bool, folders: dict[str, Path], tmp_path: Path
) -> None:
    place = make_single_file(folders[kind], tmp_path / "m.safetensors", kind) if single else folders[kind]
    loaded = load_prior(place)
    layers = prior_layers(place.with_suffix("") if single else place, place if single else None)
    assert layers.widths == loaded.text.widths
    for network, model in {"unet": loaded.unet, **loaded.text.names()}.items():
        wanted = lora_layers(model, loaded.unet.config if network == "unet" else None)
        found = layers.networks[network]
        assert {name: found.get(name) for name in wanted} == {
            name: tuple(module.weight.shape)  # type: ignore[union-attr,arg-type]
            for name, module in wanted.items()
        }
    checker = job_checker(str(place))
    for style in ("kohya", "kohya-original", "diffusers", "peft", "old"):
        make_lora(tmp_path / "x.safetensors", loaded, style)
        assert not list(checker.adapter_errors([AdapterFile("lora", InputFile(tmp_path / "x.safetensors"))])), style
    make_concept(tmp_path / "toy.safetensors", loaded.text.widths)
    assert not list(checker.adapter_errors([AdapterFile("concept", InputFile(tmp_path / "toy.safetensors"))]))


def test_a_short_header_may_begin_like_a_pickle(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "toy.safetensors"
    save_file({"emb_params": np.zeros((1, 16), np.float32)}, path)
    data = path.read_bytes()
    text = data[8 : 8 + struct.unpack("<Q", data[:8])[0]].ljust(0x0280)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert not list(job_checker(str(folders["sd1"])).adapter_errors([AdapterFile("concept", InputFile(path))]))


def test_two_files_may_not_teach_one_word(folders: dict[str, Path], tmp_path: Path) -> None:
    files = []
    for name, word in (("a", "toy"), ("b", "Toy"), ("c", "a toy")):
        make_concept(tmp_path / f"{name}.safetensors", [16], word)
        files.append(AdapterFile("concept", InputFile(tmp_path / f"{name}.safetensors")))
    checker = JobChecker("p", folders["sd1"])
    ((field, message),) = checker.adapter_errors(files)
    assert field == "concept" and "'toy' is in two of its files (a.safetensors and b.safetensors)" in message
    assert not list(checker.adapter_errors(files[1:]))


def test_a_bad_lora_fails_its_row_before_anything_is_loaded(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tetrahedron(tmp_path / "box.obj")
    (tmp_path / "x.safetensors").write_bytes(POINTER)
    manifest = tmp_path / "m.csv"
    manifest.write_text("id,prompt,mesh,lora\na,red,box.obj,x.safetensors\nb,red,box.obj,\n")
    options = [str(manifest), "--prior", str(folders["sd1"]), "--out", str(tmp_path / "out")]
    assert cli.main(["plan", *options]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("a\tblocked\tlora: x.safetensors: not a safetensors file (it is a Git LFS pointer")
    assert lines[1] == "b\tbuild\tnew"
    assert cli.main(["run", *options, "--strict"]) == 2
    assert f"{manifest}:2: lora: x.safetensors: " in capsys.readouterr().out
