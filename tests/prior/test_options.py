"""Number formats, compilation, memory: what each option does, and that score distillation stays float32."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import fake_cuda
from fake_variants import make_concept, make_diffusers, make_lora

from pipeline.cli import main
from pipeline.core.errors import PriorError
from pipeline.core.job import AdapterFile
from pipeline.core.location import InputFile
from pipeline.core.rng import torch_generator
from pipeline.optimize.sds import GuidanceRequest, SdsSettings, sample_noise, sds_gradients
from pipeline.prior.cache import CACHE_VARIABLE
from pipeline.prior.components import load_components
from pipeline.prior.identity import prior_identity
from pipeline.prior.latent_rgb_fit import fit_prior, picture
from pipeline.prior.load import Prior, load_prior
from pipeline.prior.options import PriorOptions, low_memory
from pipeline.prior.precision import can_compile


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("priors")
    return {kind: make_diffusers(root / kind, kind) for kind in ("sd1", "sd2-768-v", "sdxl")}


def gradient(prior: Prior) -> torch.Tensor:
    t, eps = sample_noise(SdsSettings(7.5), prior, 1, 0, 10, (2, 4, 8, 8))
    latents = torch.randn(2, 4, 8, 8, generator=torch_generator(1, "z")).to(prior.device)
    empty = prior.embed([""] * 2, negative=True)
    return sds_gradients(prior, [GuidanceRequest(latents, prior.embed(["a red cube"] * 2), empty, t, eps, 7.5)], 1)[0]


@pytest.mark.parametrize("kind", ["sd1", "sd2-768-v", "sdxl"])
def test_half_precision_networks_and_float32_arithmetic(kind: str, folders: dict[str, Path]) -> None:
    full = gradient(load_prior(folders[kind]))
    for precision in ("bfloat16", "float16"):
        prior = load_prior(folders[kind], options=PriorOptions(precision=precision))  # type: ignore[arg-type]
        half = getattr(torch, precision)
        assert prior.dtype == half and prior.unet.dtype == half and prior.text.models[0].dtype == half
        found = gradient(prior)
        assert found.dtype == torch.float32 and found.isfinite().all()
        # Eight bits of mantissa, times the guidance.
        assert float((found - full).abs().max()) < 0.3 * float(full.abs().max())
        assert prior.decode(torch.zeros(1, 4, 8, 8)).dtype == torch.float32
        assert prior.encode(torch.zeros(1, 3, 64, 64)).dtype == torch.float32


@pytest.mark.parametrize("supported", [True, False])
def test_a_prior_may_ask_for_bfloat16_on_cpus_that_compute_in_it(
    supported: bool, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.prior.precision.has_bfloat16", lambda: supported)
    assert load_prior(folders["sd1"]).dtype == torch.float32
    asks = tmp_path / "asks"
    shutil.copytree(folders["sd1"], asks)
    (asks / "latentkiln.json").write_text('{"cpu_precision": "bfloat16"}')
    prior = load_prior(asks)
    assert prior.dtype == (torch.bfloat16 if supported else torch.float32) and prior.vae.dtype == torch.float32
    assert load_prior(asks, options=PriorOptions(precision="float32")).dtype == torch.float32
    if supported:
        (asks / "latentkiln.json").write_text('{"cpu_precision": "int8"}')
        with pytest.raises(PriorError, match=r"latentkiln.json: cpu_precision is 'int8'; allowed: float32, bfloat16"):
            load_prior(asks)


def test_the_autoencoder_stays_float32_where_half_would_spoil_it(folders: dict[str, Path]) -> None:
    def dtype(kind: str, precision: Any) -> torch.dtype:
        return load_prior(folders[kind], options=PriorOptions(precision=precision)).vae.dtype

    assert dtype("sd1", "float16") == torch.float16 and dtype("sd1", "bfloat16") == torch.float32
    # SDXL's says force_upcast: its activations leave float16's range.
    assert dtype("sdxl", "float16") == torch.float32


def test_saving_memory_changes_no_number(folders: dict[str, Path]) -> None:
    plain = load_prior(folders["sd1"])
    saving = load_prior(folders["sd1"], options=low_memory())
    assert torch.equal(gradient(plain), gradient(saving))
    image = torch.rand(3, 3, 64, 64)
    assert torch.allclose(plain.encode(image), saving.encode(image), atol=1e-6)
    assert saving.vae.use_slicing and saving.vae.use_tiling
    assert saving.options.non_default() == {"offload": True, "vae_slicing": True, "vae_tiling": True}
    assert plain.options.non_default() == {}
    image.requires_grad_(True)
    saving.encode(image).sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0


def test_offloading_brings_networks_to_the_device_and_back(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = load_prior(folders["sd1"], options=PriorOptions(offload=True))
    moves: list[str] = []
    for model, name in ((prior.vae, "vae"), (prior.text.models[0], "text")):
        to = model.to
        monkeypatch.setattr(
            model, "to", lambda place, to=to, name=name: (moves.append(f"{name} {place}"), to(place))[1]
        )
    prior.decode(torch.zeros(1, 4, 8, 8))
    prior.embed(["a stone"])
    prior.embed(["a stone"])
    assert moves == ["vae cpu", "vae cpu", "text cpu", "text cpu"]
    moves.clear()
    # The way back through the encoder needs its weights where they were.
    prior.encode(torch.zeros(1, 3, 64, 64, requires_grad=True))
    assert moves == ["vae cpu"]


def test_compiled_but_not_with_a_lora(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    used: list[int] = []

    def compile(module: Any, **settings: Any) -> Any:
        calls.append(settings)

        def fast(*arguments: Any, **named: Any) -> Any:
            used.append(1)
            return module(*arguments, **named)

        return fast

    monkeypatch.setattr(torch, "compile", compile)
    prior = load_prior(folders["sd1"], options=PriorOptions(compile=True))
    assert calls == [{"mode": "default", "dynamic": False}]
    assert torch.equal(gradient(prior), gradient(load_prior(folders["sd1"]))) and used
    used.clear()
    make_lora(tmp_path / "x.safetensors", prior)
    adapters = prior.adapters([AdapterFile("lora", InputFile(tmp_path / "x.safetensors"))])
    prior.predict_noise(torch.zeros(1, 4, 8, 8), torch.tensor([5]), prior.embed(["a"], adapters))
    assert not used


def test_on_cuda_it_is_compiled_as_cuda_graphs(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    place: list[torch.Tensor] = []

    def compile(module: Any, **settings: Any) -> Any:
        """As a replayed graph does, it writes each result to the same place."""
        asked.append(settings)

        def replay(*arguments: Any, **named: Any) -> Any:
            result = module(*arguments, **named)[0]
            place.append(place[0].copy_(result) if place else result)
            return (place[0],)

        return replay

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr("pipeline.prior.precision.can_compile", lambda: True)
    with fake_cuda():
        prior = load_prior(folders["sdxl"], "cuda", PriorOptions(compile=True, precision="float32"))
        assert asked == [{"mode": "reduce-overhead", "dynamic": False}]
        text, t = prior.embed(["a red cube"]), torch.tensor([500], device="cuda")
        first, second = (prior.predict_noise(torch.full((1, 4, 8, 8), x, device="cuda"), t, text) for x in (0.0, 1.0))
        assert len(place) == 2 and not torch.equal(first, second)


class Recorder:
    """Stand-ins for CUDA's streams and graphs. What is called while a graph is recorded runs again at each replay."""

    def __init__(self, prior: Prior, monkeypatch: pytest.MonkeyPatch):
        self.recording: Recorder.Graph | None = None
        self.calls, self.replays = 0, 0
        forward, recorder = prior.unet.forward, self

        def called(*arguments: Any, **named: Any) -> Any:
            recorder.calls += 1
            result = forward(*arguments, **named)
            if recorder.recording is not None:
                recorder.recording.work = lambda: result[0].copy_(forward(*arguments, **named)[0])
            return result

        class Graph:
            def replay(self) -> None:
                recorder.replays += 1
                self.work()

        class Recording:
            def __init__(self, graph: Graph):
                self.graph = graph

            def __enter__(self) -> None:
                recorder.recording = self.graph

            def __exit__(self, *error: object) -> None:
                recorder.recording = None

        class Stream:
            def wait_stream(self, other: Any) -> None:
                assert isinstance(other, Stream)

        monkeypatch.setattr(prior.unet, "forward", called)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", Recording)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_without_a_compiler_the_unet_is_recorded_as_it_is(
    kind: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.prior.precision.can_compile", lambda: False)
    with fake_cuda():
        plain = load_prior(folders[kind], "cuda", PriorOptions(precision="float32"))
        prior = load_prior(folders[kind], "cuda", PriorOptions(compile=True, precision="float32"))
        recorder = Recorder(prior, monkeypatch)
        answers = []
        for count, value, prompt in ((1, 0.0, "a red cube"), (1, 1.0, "a stone"), (2, 1.0, "a red cube")):
            x = torch.full((count, 4, 8, 8), value, device="cuda")
            t = torch.full((count,), 100 + 800 * int(value), device="cuda")
            answers.append([p.predict_noise(x, t, p.embed([prompt]).expand(count)) for p in (prior, plain)])
        # Three calls to warm up and one that is recorded for each shape; the second call was replayed only.
        assert (recorder.calls, recorder.replays) == (8, 3)
        for found, expected in answers:
            assert torch.allclose(found, expected, atol=1e-5)


def test_a_recording_that_runs_out_of_memory_says_so(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ending the broken recording raises on top: the loop halves its width for lack of memory alone."""
    monkeypatch.setattr("pipeline.prior.precision.can_compile", lambda: False)
    with fake_cuda():
        prior = load_prior(folders["sd1"], "cuda", PriorOptions(compile=True, precision="float32"))
        recorder = Recorder(prior, monkeypatch)
        streams: list[Any] = []
        monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
        called = prior.unet.forward

        def lacking(*arguments: Any, **named: Any) -> Any:
            if recorder.recording is not None:
                raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
            return called(*arguments, **named)

        def broken(recording: Any, *error: object) -> None:
            recorder.recording = None
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

        x, t = torch.zeros(1, 4, 8, 8, device="cuda"), torch.tensor([5], device="cuda")
        prior.predict_noise(x, t, prior.embed(["a"]))
        with monkeypatch.context() as patch:
            patch.setattr(prior.unet, "forward", lacking)
            patch.setattr(torch.cuda.graph, "__exit__", broken)
            with pytest.raises(torch.OutOfMemoryError):
                prior.predict_noise(x.expand(2, -1, -1, -1), t.expand(2), prior.embed(["a"]).expand(2))
        assert len(streams) == 1
        # Nothing is kept of it, nor of the others, and the next call is recorded anew: three to warm up and one more.
        recorder.calls = 0
        prior.predict_noise(x, t, prior.embed(["a"]))
        assert recorder.calls == 4
        prior.predict_noise(x, t, prior.embed(["a"]))
        assert recorder.calls == 4


@pytest.mark.parametrize("missing", ["triton", "compiler", "headers"])
def test_what_compiling_takes(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have = {"triton", "compiler", "headers"}
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in have else None)
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/gcc" if "compiler" in have and name == "gcc" else None)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    (tmp_path / "Python.h").touch()
    assert can_compile()
    have.remove(missing)
    if missing == "headers":
        (tmp_path / "Python.h").unlink()
    assert not can_compile()


def test_measuring_compiles_nothing_and_lack_of_memory_forgets_what_was(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    used, forgotten = [], []

    def compile(module: Any, **settings: Any) -> Any:
        return lambda *arguments, **named: (used.append(1), module(*arguments, **named))[1]

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(torch.compiler, "reset", lambda: forgotten.append(1))
    prior = load_prior(folders["sd1"], options=PriorOptions(compile=True))
    with prior.uncompiled():
        gradient(prior)
        prior.release(everything=True)
    assert not used and not forgotten
    gradient(prior)
    read: list[int] = []
    prior.text.models[0].register_forward_hook(lambda *_: read.append(1))
    prior.release()
    prior.embed(["a red cube"])
    assert used and not forgotten and not read  # the embeddings were kept
    prior.release(everything=True)
    prior.embed(["a red cube"])
    assert forgotten and read
    load_prior(folders["sd1"]).release(everything=True)
    assert len(forgotten) == 1


def test_images_that_do_not_fit_are_decoded_one_by_one(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = load_prior(folders["sd1"])
    latents = torch.randn(3, 4, 8, 8, generator=torch_generator(3, "latents"))
    expected, decode, sizes = prior.decode(latents), prior.vae.decode, []

    def small(z: torch.Tensor, **named: Any) -> Any:
        sizes.append(len(z))
        if len(z) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return decode(z, **named)

    monkeypatch.setattr(prior.vae, "decode", small)
    torch.testing.assert_close(prior.decode(latents), expected, atol=1e-5, rtol=0)
    assert sizes == [3, 1, 1, 1]


def test_half_precision_networks_that_wait_in_main_memory_never_compute_there(folders: dict[str, Path]) -> None:
    """Not every CPU, nor every torch, has half precision convolutions."""
    parts = load_components(prior_identity(folders["sd1"]))
    places = []
    parts.vae.encoder.conv_in.register_forward_hook(lambda module, given, out: places.append(given[0].device.type))
    parts.texts[0].register_forward_hook(lambda module, given, out: places.append(out[0].device.type))
    with fake_cuda():
        prior = Prior(prior_identity(folders["sd1"]), parts, torch.device("cuda"), low_memory())
        prior.embed(["a red cube"])
        assert prior.vae.dtype == torch.float16 and {p.device.type for p in prior.vae.parameters()} == {"cpu"}
    assert places == ["cuda", "cuda"]


def test_a_decoder_that_overflows_half_precision_is_asked_in_float32(folders: dict[str, Path]) -> None:
    prior = load_prior(folders["sd1"], options=PriorOptions(precision="float16"))
    plain = load_prior(folders["sd1"])
    latents = torch.randn(1, 4, 8, 8, generator=torch_generator(2, "latents"))
    for model in (prior.vae, plain.vae):
        with torch.no_grad():
            model.decoder.conv_in.weight.mul_(2.0**14)
            model.post_quant_conv.weight.mul_(2.0**8)
    scaled = latents.half() / prior.vae.config.scaling_factor
    assert not prior.vae.decode(scaled, return_dict=False)[0].isfinite().all()
    found, expected = prior.decode(latents), plain.decode(latents)
    assert found.isfinite().all() and prior.vae.dtype == torch.float16
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=0)
    with pytest.raises(PriorError, match="even in float32"):
        prior.decode(torch.full((1, 4, 8, 8), torch.nan))


def test_attention_is_torchs_fused_one(folders: dict[str, Path]) -> None:
    names = {type(p).__name__ for p in load_prior(folders["sdxl"]).unet.attn_processors.values()}
    assert names == {"AttnProcessor2_0"}


@pytest.mark.parametrize("kind", ["sd2-768-v", "sdxl"])
def test_everything_goes_to_the_device_it_is_used_on(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    expected = gradient(load_prior(folders[kind]))
    found = prior_identity(folders[kind])
    for options in (PriorOptions(precision="float32"), low_memory("float32"), PriorOptions()):
        # Read before: the libraries' own way to fill networks is no concern of the make-believe device.
        parts = load_components(found)
        with fake_cuda():
            prior = Prior(found, parts, torch.device("cuda"), options)
            mine = gradient(prior)
            assert mine.device.type == "cuda"
            if options.precision == "float32":
                assert torch.allclose(mine.cpu(), expected, atol=1e-5)
            make_lora(tmp_path / "x.safetensors", prior)
            make_concept(tmp_path / "toy.safetensors", prior.text.widths)
            files = [
                AdapterFile("lora", InputFile(tmp_path / "x.safetensors")),
                AdapterFile("concept", InputFile(tmp_path / "toy.safetensors")),
            ]
            text = prior.embed(["a toy"], prior.adapters(files))
            noisy = torch.zeros(1, 4, 8, 8, device="cuda")
            assert prior.predict_noise(noisy, torch.tensor([5], device="cuda"), text).isfinite().all()
            image = prior.decode(noisy)
            assert image.device.type == "cuda" and prior.encode(image).device.type == "cuda"


def test_a_device_that_is_not_there() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(PriorError, match="no CUDA device"):
            load_prior("embedded", "cuda")


def test_views_are_of_the_priors_own_size_where_it_says_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folders["sd1"], copy)
    (copy / "latentkiln.json").unlink()
    defaults = load_prior(copy).defaults
    assert (defaults.view_size, defaults.texture_size) == (8, 128)


# fit-rgb ------------------------------------------------------------------------------------------------------------


class Plain:
    """An "autoencoder" whose latents are mixed block means, with an offset: a linear map fits it exactly."""

    mix = torch.tensor([[0.9, 0.1, 0.2], [0.1, -0.8, 0.3], [0.2, 0.2, 0.7], [0.5, 0.5, -0.5]])

    def encode(self, rgb: torch.Tensor) -> torch.Tensor:
        means = torch.nn.functional.avg_pool2d(rgb, 8)
        return torch.einsum("cr,nrhw->nchw", self.mix, means) + 0.3


def test_fitting_finds_the_map_and_becomes_part_of_the_identity(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import shutil

    copy = tmp_path / "xl"
    shutil.copytree(folders["sdxl"], copy)
    (copy / "latent_rgb.json").unlink()
    before = prior_identity(copy).identity
    monkeypatch.setattr(Prior, "encode", lambda self, rgb: Plain().encode(rgb))
    assert main(["prior", "fit-rgb", str(copy), "--images", "12"]) == 0
    assert "red 1.000, green 1.000, blue 1.000" in capsys.readouterr().out
    prior = load_prior(copy)
    assert prior.identity != before
    colours = torch.rand(5, 3)
    latents = (colours @ Plain.mix.T + 0.3).numpy()
    assert np.allclose(latents @ prior.latent_rgb.matrix + prior.latent_rgb.bias, colours, atol=1e-4)


def test_a_prior_that_cannot_be_written_has_its_map_in_the_cache(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    copy = tmp_path / "snapshots" / "abc"
    shutil.copytree(folders["sdxl"], copy)
    (copy / "latent_rgb.json").unlink()
    mode = stat.S_IMODE(os.stat(copy).st_mode)
    os.chmod(copy, 0o555)
    try:
        before = prior_identity(copy)
        result = fit_prior(copy, images=8)
        assert result.path.is_relative_to(tmp_path / "cache") and not (copy / "latent_rgb.json").exists()
        after = prior_identity(copy)
        assert after.identity != before.identity and after.files_identity == before.files_identity
        assert np.allclose(load_prior(copy).latent_rgb.matrix, result.map.matrix)
        # Fitted again, it is the same to the bit.
        data = result.path.read_bytes()
        fit_prior(copy, images=8)
        assert result.path.read_bytes() == data
    finally:
        os.chmod(copy, mode)


def test_pictures_are_varied_and_repeatable() -> None:
    pictures = [picture(0, index, 64) for index in range(6)]
    assert torch.equal(pictures[3], picture(0, 3, 64))
    for image in pictures:
        assert image.shape == (3, 64, 64) and image.min() >= 0 and image.max() <= 1
        assert image.std() > 0.05
    assert len({float(image.mean()) for image in pictures}) == 6
