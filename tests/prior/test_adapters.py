"""LoRA files and learned words: they act on their own row, as diffusers and the mathematics say, and leave no trace."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_variants import UNET_LAYERS, make_concept, make_diffusers, make_lora
from safetensors.torch import load_file, save_file

from pipeline.core.errors import PriorError
from pipeline.core.job import AdapterFile, Job
from pipeline.core.location import InputFile
from pipeline.core.rng import torch_generator
from pipeline.core.scene import View
from pipeline.manifest import load_manifest
from pipeline.optimize.prompts import PromptTable
from pipeline.optimize.sds import GuidanceRequest, SdsSettings, sample_noise, sds_gradients
from pipeline.plan import plan
from pipeline.prior.adapters import NO_ADAPTERS, Adapters
from pipeline.prior.components import load_components
from pipeline.prior.identity import prior_identity
from pipeline.prior.load import Prior, load_prior

STYLES = ("kohya", "kohya-original", "diffusers", "peft", "old")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("priors")
    return {kind: make_diffusers(root / kind, kind) for kind in ("sd1", "sdxl")}


@pytest.fixture(scope="module")
def prior(folders: dict[str, Path]) -> Prior:
    return load_prior(folders["sd1"])


def query(prior: Prior, seed: int, adapters: Adapters = NO_ADAPTERS, prompt: str = "a red cube") -> GuidanceRequest:
    table = PromptTable(prior, prompt, "", view_words=False, close_up=False, adapters=adapters)
    t, eps = sample_noise(SdsSettings(7.5), prior, seed, 0, 10, (1, 4, 8, 8))
    latents = torch.randn(1, 4, 8, 8, generator=torch_generator(seed, "z"))
    return GuidanceRequest(latents, table.text([View("front", False)]), table.negative(1), t, eps, 7.5)


def merged(prior: Prior, changes: dict[str, torch.Tensor], weight: float) -> Prior:
    """A copy of ``prior`` with the LoRA's products added to its weights: what LoRA is defined as."""
    identity = prior_identity(prior.folder)
    components = load_components(identity)
    with torch.no_grad():
        for name, change in changes.items():
            network, layer = name.split(".", 1)
            model = components.unet if network == "unet" else components.texts[0]
            module = model.get_submodule(layer)
            module.weight += weight * change.reshape(module.weight.shape)
    return Prior(identity, components, prior.device, prior.options)


@pytest.mark.parametrize("kind", ["lora", "concept"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(kind: str, number: float, prior: Prior, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    if kind == "lora":
        make_lora(path, prior)
    else:
        make_concept(path, [16], "toy")
    tensors = load_file(path)
    name = next(name for name in tensors if tensors[name].numel() > 1)
    tensors[name].view(-1)[1] = number
    save_file(tensors, path)
    with pytest.raises(PriorError, match=r"has NaN or infinite numbers"):
        prior.adapters([AdapterFile(kind, InputFile(path))])  # type: ignore[arg-type]


@pytest.mark.parametrize("style", STYLES)
def test_a_lora_is_its_products_added_to_the_weights(style: str, prior: Prior, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    changes = make_lora(path, prior, style)
    adapters = prior.adapters([AdapterFile("lora", InputFile(path), 0.5)])
    (mine,) = sds_gradients(prior, [query(prior, 1, adapters)], 1)
    other = merged(prior, changes, 0.5)
    (expected,) = sds_gradients(other, [query(other, 1)], 1)
    assert torch.allclose(mine, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()) + 1e-5)
    assert not torch.allclose(mine, sds_gradients(prior, [query(prior, 1)], 1)[0], atol=1e-3)


def test_rows_of_a_batch_keep_their_own_adapters(prior: Prior, tmp_path: Path) -> None:
    make_lora(tmp_path / "a.safetensors", prior, "kohya", seed=1)
    make_lora(tmp_path / "b.safetensors", prior, "peft", seed=2)
    make_concept(tmp_path / "toy.safetensors", prior.text.widths, "<toy>")
    a = prior.adapters([AdapterFile("lora", InputFile(tmp_path / "a.safetensors"))])
    weak = prior.adapters([AdapterFile("lora", InputFile(tmp_path / "a.safetensors"), 0.1)])
    both = prior.adapters([AdapterFile("lora", InputFile(tmp_path / f"{n}.safetensors")) for n in "ab"])
    toy = prior.adapters([AdapterFile("concept", InputFile(tmp_path / "toy.safetensors"))])
    before = {name: value.clone() for name, value in prior.unet.state_dict().items()}
    rows = [
        query(prior, 0), query(prior, 1, a), query(prior, 2, both), query(prior, 3, toy, "a <toy> cube"),
        query(prior, 4, weak), query(prior, 5, a), query(prior, 6),
    ]  # fmt: skip
    together = sds_gradients(prior, rows, 8)
    for row, found in zip(rows, together, strict=True):
        assert torch.equal(found, sds_gradients(prior, [row], 8)[0])
    fresh = load_prior(prior.folder)
    for index in (0, 6):
        assert torch.equal(together[index], sds_gradients(fresh, [query(fresh, index)], 8)[0])
    # Not one of them did nothing.
    for index, row in enumerate(rows[1:6], start=1):
        plain = dataclasses.replace(row, text=query(prior, index).text, negative=query(prior, index).negative)
        assert not torch.allclose(together[index], sds_gradients(prior, [plain], 8)[0], atol=1e-3)
    assert all(torch.equal(before[name], value) for name, value in prior.unet.state_dict().items())
    assert not any(module._forward_hooks for model in (prior.unet, *prior.text.models) for module in model.modules())


def test_a_lora_for_sdxls_two_encoders(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    prior = load_prior(folders["sdxl"])
    layer = "text_model_encoder_layers_0_mlp_fc1"
    save_file(
        {f"lora_te{n}_{layer}.lora_{half}.weight": torch.randn(shape, generator=torch_generator(n, half))
         for n, width in ((1, 16), (2, 24)) for half, shape in (("down", (1, width)), ("up", (32, 1)))},
        tmp_path / "x.safetensors",
    )  # fmt: skip
    adapters = prior.adapters([AdapterFile("lora", InputFile(tmp_path / "x.safetensors"))])
    plain, changed = prior.embed(["a red cube"]), prior.embed(["a red cube"], adapters)
    first, second = (plain.states - changed.states).abs().split([16, 24], dim=-1)
    assert first.max() > 1e-3 and second.max() > 1e-3
    blocks = make_lora(tmp_path / "y.safetensors", prior, "kohya-original")
    assert len(blocks) == len(UNET_LAYERS)
    other = prior.adapters([AdapterFile("lora", InputFile(tmp_path / "y.safetensors"))])
    assert not torch.equal(
        sds_gradients(prior, [query(prior, 1, other)], 1)[0], sds_gradients(prior, [query(prior, 1)], 1)[0]
    )


@pytest.mark.parametrize(
    ("tensors", "part"),
    [
        ({"unet.mid_block.attentions.0.proj_in.dora_scale": (1,)}, "only plain LoRA"),
        ({"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": (1,)}, "only plain LoRA"),
        ({"something.weight": (1,)}, "not a LoRA"),
        ({"unet.nowhere.lora_A.weight": (1, 4), "unet.nowhere.lora_B.weight": (4, 1)}, "made for another model"),
        ({"unet.mid_block.attentions.0.proj_in.lora_A.weight": (1, 4)}, "missing a matrix"),
        (
            {"unet.mid_block.attentions.0.proj_in.lora_A.weight": (1, 4),
             "unet.mid_block.attentions.0.proj_in.lora_B.weight": (4, 1)}, "made for another model",
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_no_lora_for_this_prior_is_one_line(
    tensors: Any, part: str, prior: Prior, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, path)
    with pytest.raises(PriorError, match=part) as caught:
        prior.adapters([AdapterFile("lora", InputFile(path))])
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    with pytest.raises(PriorError, match="not a safetensors file"):
        path.write_bytes(b"junk")
        prior.adapters([AdapterFile("lora", InputFile(path))])


@pytest.mark.parametrize(
    ("kind", "word", "written"), [("sd1", "<toy>", "<toy>"), ("sd1", None, "style"), ("sdxl", None, "style")]
)
def test_a_concept_is_what_diffusers_makes_of_it(
    kind: str, word: str | None, written: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    import diffusers

    prior = load_prior(folders[kind])
    path = make_concept(tmp_path / "style.safetensors", prior.text.widths, word, vectors=3)
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(folders[kind], local_files_only=True)
    if kind == "sdxl":
        from safetensors.torch import load_file

        for key, number in (("clip_l", ""), ("clip_g", "_2")):
            pipe.load_textual_inversion(
                {written: load_file(path)[key]}, token=written, local_files_only=True,
                text_encoder=getattr(pipe, f"text_encoder{number}"), tokenizer=getattr(pipe, f"tokenizer{number}"),
            )  # fmt: skip
    else:
        pipe.load_textual_inversion(str(path), token=written, local_files_only=True)
    prompt = f"a red {written} cube, {written}"
    adapters = prior.adapters([AdapterFile("concept", InputFile(path))])
    mine = prior.embed([prompt], adapters)
    with torch.no_grad():
        if kind == "sdxl":
            expected, _, pooled, _ = pipe.encode_prompt(prompt)
            assert mine.pooled is not None and torch.allclose(mine.pooled, pooled, atol=1e-5)
        else:
            expected, _ = pipe.encode_prompt(prompt, "cpu", 1, True)
    assert torch.allclose(mine.states, expected, atol=1e-5)
    assert torch.equal(prior.embed(["a red cube"], adapters).states, prior.embed(["a red cube"]).states)


def test_a_learned_word_is_a_word_of_its_own(prior: Prior, tmp_path: Path) -> None:
    make_concept(tmp_path / "toy.safetensors", prior.text.widths)
    toy = prior.adapters([AdapterFile("concept", InputFile(tmp_path / "toy.safetensors"))])
    assert torch.equal(prior.embed(["a toycube"], toy).states, prior.embed(["a toycube"]).states)
    assert torch.equal(prior.embed(["a Toy cube"], toy).states, prior.embed(["a toy cube"], toy).states)
    assert prior.unused_concepts("a toy", toy) == [] and "'toy'" in prior.unused_concepts("a cube", toy)[0]
    # A prompt that is too long is cut, whatever stands in it.
    assert prior.embed(["toy " * 30], toy).states.shape == (1, 12, 16)
    with pytest.raises(PriorError, match="made for another model"):
        make_concept(tmp_path / "toy.safetensors", [5])
        prior.adapters([AdapterFile("concept", InputFile(tmp_path / "toy.safetensors"))])


def test_equal_files_are_equal_adapters(prior: Prior, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_lora(tmp_path / f"{name}.safetensors", prior)
    a, b, weak = (
        prior.adapters([AdapterFile("lora", InputFile(tmp_path / f"{n}.safetensors"), w)])
        for n, w in (("a", 1), ("b", 1), ("b", 0.5))
    )
    assert a == b and hash(a) == hash(b) and a != weak


def test_rows_name_adapters_and_their_bytes_are_in_the_fingerprint(prior: Prior, tmp_path: Path) -> None:
    (tmp_path / "x.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    (tmp_path / "loras").mkdir()
    for number, name in enumerate(("a", "b")):
        make_lora(tmp_path / "loras" / f"{name}.safetensors", prior, seed=number)
    make_concept(tmp_path / "toy.safetensors", prior.text.widths)

    def marks(**fields: str) -> tuple[Job, str]:
        head = ["id", "prompt", "mesh", *fields]
        row = ["one", "a toy", "x.obj", *fields.values()]
        manifest = tmp_path / "m.csv"
        manifest.write_text(",".join(head) + "\n" + ",".join(row) + "\n")
        loaded = load_manifest(manifest)
        assert not loaded.problems, loaded.problems
        (item,) = plan(loaded.jobs, tmp_path / "out", prior_identity="p")
        assert item.action == "build", item.reason
        return item.job, item.fingerprint

    _, plain = marks()
    job, one = marks(lora="loras/a.safetensors")
    assert job.adapters == (AdapterFile("lora", InputFile(tmp_path / "loras" / "a.safetensors"), 1.0),)
    job, weighed = marks(lora="loras/a.safetensors:0.8; loras/b.safetensors : -1")
    assert [a.weight for a in job.adapters] == [0.8, -1.0]
    _, learned = marks(concept="toy.safetensors")
    assert len({plain, one, weighed, learned}) == 4
    (tmp_path / "loras" / "a.safetensors").rename(tmp_path / "loras" / "c.safetensors")
    assert marks(lora="loras/c.safetensors")[1] == one
    make_lora(tmp_path / "loras" / "c.safetensors", prior, seed=7)
    assert marks(lora="loras/c.safetensors")[1] != one


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("lora", "x.ckpt", "not a LoRA format; allowed: .safetensors"),
        ("lora", "gone.safetensors:0.5", "there is no file"),
        ("lora", "../x.safetensors", "leaves the manifest's folder"),
        ("lora", "x.safetensors:11", "the weight 11 is not allowed"),
        ("lora", ";", "it names 0 files"),
        ("concept", "empty.safetensors", "is an empty file"),
        ("concept", "s3://bucket/x.safetensors", "is a URL outside the manifest's folder"),
    ],
)
def test_wrong_adapters_are_named(field: str, value: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "x.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    (tmp_path / "x.safetensors").write_bytes(b"x")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"id,prompt,mesh,{field}\none,a toy,x.obj,{value}\n")
    (problem,) = load_manifest(manifest).problems
    assert problem.field == field and part in problem.message
