"""Checkpoints that are damaged, foreign or made up are dropped, told in one line, and change no byte of the asset."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from test_optimize import subject

from pipeline.core.job import Job, RowLocation
from pipeline.core.location import InputFile
from pipeline.export.record import read_record
from pipeline.optimize import checkpoint
from pipeline.optimize.checkpoint import CheckpointError, TensorSpec
from pipeline.optimize.loop import Optimization, optimize
from pipeline.prior.load import Prior
from pipeline.recipes.paint import paint
from pipeline.recipes.paint_settings import PaintOptions

Tensors = dict[str, torch.Tensor]


def read(path: Path) -> tuple[Tensors, dict[str, str]]:
    """All that a checkpoint holds, unchecked."""
    with safe_open(path, framework="pt") as stream:
        return {name: stream.get_tensor(name).clone() for name in stream.keys()}, stream.metadata()  # noqa: SIM118


def remake(change: Callable[[Tensors], object]) -> Callable[[Path], None]:
    """Changes tensors and writes them as ``save`` does, with a checksum that is right."""

    def damage(path: Path) -> None:
        tensors, metadata = read(path)
        change(tensors)
        checkpoint.save(path, tensors, key=metadata["key"], step=int(metadata["step"]))

    return damage


def retell(**changes: str) -> Callable[[Path], None]:
    """Changes what the file says of itself."""

    def damage(path: Path) -> None:
        tensors, metadata = read(path)
        save_file(tensors, path, metadata=metadata | changes)

    return damage


def flip_data(path: Path) -> None:
    """One bit of the last tensor, so that it stays a sensible number."""
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)


def flip_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[12] ^= 1
    path.write_bytes(data)


def rename(path: Path) -> None:
    """Two tensors of one shape change places, under the old checksum."""
    tensors, metadata = read(path)
    names = [name for name in tensors if name.endswith(("exp_avg", "exp_avg_sq"))][:2]
    tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]
    save_file(tensors, path, metadata=metadata)


def huge(path: Path) -> None:
    """A header that promises more than there is."""
    path.write_bytes(struct.pack("<Q", 1 << 60) + path.read_bytes()[8:])


def first(tensors: Tensors, end: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(end))


def put(end: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    """Changes the first tensor whose name has this end, under a checksum that is right."""
    return remake(lambda tensors: tensors.update({first(tensors, end): change(tensors[first(tensors, end)])}))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "bit of data": (flip_data, "checksum"),
    "bit of header": (flip_header, "cannot be read"),
    "swapped": (rename, "checksum"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "cannot be read"),
    "last byte": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
    "garbage": (lambda path: path.write_bytes(b"\xff" * 64), "cannot be read"),
    "huge header": (huge, "cannot be read"),
    "nan": (put("exp_avg", lambda x: torch.full_like(x, float("nan"))), "not finite"),
    "infinite": (put("exp_avg_sq", lambda x: torch.full_like(x, float("inf"))), "not finite"),
    "shape": (put("exp_avg", lambda x: x[..., :-1].contiguous()), r"is F32 \[.*\], not F32 \["),
    "dtype": (put("exp_avg", lambda x: x.double()), r"is F64 \[.*\], not F32"),
    "no scene": (remake(lambda t: t.pop(scene_of(t))), "lacks scene"),
    "half an optimiser": (remake(lambda t: t.pop(first(t, "exp_avg_sq"))), "lacks adam"),
    "extra": (remake(lambda t: t.update(more=torch.zeros(3))), "which this scene does not have"),
    "control characters": (remake(lambda t: t.update({"\x1b]0;x\x07\n": torch.zeros(3)})), r"holds '\\x1b\]0;x"),
    "step beyond": (retell(step="100000"), "from step 100000"),
    "step is no number": (retell(step="many"), "cannot be read"),
    "another step": (retell(step="1"), "checksum"),
    "no checksum": (retell(sha256=""), "checksum"),
    "another format": (retell(format="latentkiln-checkpoint-1"), "format is 'latentkiln-checkpoint-1'"),
    "another key": (retell(key="other"), "other inputs or settings"),
}


def scene_of(tensors: Tensors) -> str:
    return next(name for name in sorted(tensors) if name.startswith("scene."))


@pytest.fixture(scope="module")
def whole(prior: Prior) -> Optimization:
    made = subject(prior, 1)
    assert optimize([made], prior, lockstep=1)
    return made


@pytest.mark.parametrize("name", DAMAGES)
def test_a_bad_checkpoint_is_dropped_and_the_steps_begin_anew(
    prior: Prior, whole: Optimization, tmp_path: Path, name: str
) -> None:
    damage, reason = DAMAGES[name]
    path = tmp_path / "one" / ".work" / "0" / "latent.safetensors"
    begun = subject(prior, 1, path=path)
    assert not optimize([begun], prior, lockstep=1, stop=lambda: begun.step >= 3)
    damage(path)
    again = subject(prior, 1, path=path)
    assert optimize([again], prior, lockstep=1)
    assert again.error is None and again.resumed_from == 0 and again.step == 6
    (note,) = again.notes
    assert note.startswith("the checkpoint .work/0/latent.safetensors was dropped: ") and note.isprintable()
    assert re.search(reason, note), note
    assert torch.equal(again.scene.state()["pixels"], whole.scene.state()["pixels"])
    # What is good for nothing is gone; what may be another run's is written over only by the next checkpoint.
    assert path.exists() == (name in ("another format", "another key"))


def test_a_good_checkpoint_is_used_without_a_word(prior: Prior, tmp_path: Path) -> None:
    path = tmp_path / "latent.safetensors"
    begun = subject(prior, 1, path=path)
    optimize([begun], prior, lockstep=1, stop=lambda: begun.step >= 3)
    again = subject(prior, 1, path=path)
    again.resume()
    assert (again.resumed_from, again.notes) == (3, [])


@pytest.mark.parametrize("value", [torch.zeros(()), torch.zeros(0, 3), torch.ones(2, dtype=torch.bool)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8])
def test_what_is_saved_is_loaded_whatever_its_shape_dtype_and_layout(
    tmp_path: Path, value: torch.Tensor, dtype: torch.dtype
) -> None:
    odd = torch.arange(24).view(1, 2, 3, 4).to(dtype).contiguous(memory_format=torch.channels_last)
    tensors = {"plain": value, "odd": odd, "slice": odd[..., ::2].transpose(2, 3)}
    checkpoint.save(tmp_path / "c", tensors, key="k", step=2)
    specs = {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}
    found = checkpoint.load(tmp_path / "c", key="k", steps=2, required=specs)
    assert found is not None and found[1] == 2
    for name, tensor in found[0].items():
        assert torch.equal(tensor, tensors[name]) and tensor.dtype == tensors[name].dtype and tensor.is_contiguous()
    assert checkpoint.load(tmp_path / "none", key="k", steps=2, required=specs) is None


def test_a_tensor_of_the_wrong_shape_is_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's file may promise any number of gigabytes."""
    checkpoint.save(tmp_path / "c", {"x": torch.zeros(1000)}, key="k", step=0)

    class NothingRead:
        def __init__(self, *args: Any, **options: Any):
            self._stream = safe_open(*args, **options)

        def __enter__(self) -> Any:
            self._open = self._stream.__enter__()
            return self

        def __exit__(self, *exc: Any) -> None:
            self._stream.__exit__(*exc)

        def __getattr__(self, name: str) -> Any:
            assert name != "get_tensor", "a tensor was read"
            return getattr(self._open, name)

    monkeypatch.setattr(checkpoint, "safe_open", NothingRead)
    with pytest.raises(CheckpointError, match=r"x is F32 \[1000\], not F32 \[2\]"):
        checkpoint.load(tmp_path / "c", key="k", steps=1, required={"x": TensorSpec((2,), torch.float32)})


def job(mesh: Path, **settings: object) -> Job:
    values = PaintOptions(**{"steps": 20, "preview": False, **settings}).model_dump(mode="json")  # type: ignore[arg-type]
    return Job("one", "paint", "a red brick cube", "", 0, InputFile(mesh), values, RowLocation("m.csv", 2))


def run(made: Job, prior: Prior, out: Path, stop: Callable[[], bool] = lambda: False):  # type: ignore[no-untyped-def]
    return paint([made], prior, out, fingerprints=["print"], lockstep=2, stop=stop)[0]


def interrupt(made: Job, prior: Prior, out: Path, calls: int) -> Path:
    """Stops a row half way; its checkpoint."""
    answers = iter([False] * calls + [True] * 1000)
    assert run(made, prior, out, lambda: next(answers)).state == "interrupted"
    (path,) = (out / "one" / ".work" / "0").glob("*.safetensors")
    return path


@pytest.mark.parametrize("name", ["bit of data", "truncated", "another format"])
def test_a_row_tells_of_its_dropped_checkpoint_and_ends_in_the_right_bytes(
    prior: Prior, cube: Path, tmp_path: Path, name: str
) -> None:
    made = job(cube)
    run(made, prior, tmp_path / "whole")
    DAMAGES[name][0](interrupt(made, prior, tmp_path / "parts", 9))
    # Interrupted once more, before anything was saved: this run's outcome says it, too.
    answers = iter([False, False] + [True] * 1000)
    again = run(made, prior, tmp_path / "parts", lambda: next(answers))
    assert again.state == "interrupted" and any("was dropped" in text for text in again.warnings)
    DAMAGES[name][0](tmp_path / "parts" / "one" / ".work" / "0" / "latent.safetensors")
    assert run(made, prior, tmp_path / "parts").state == "done"
    record = read_record(tmp_path / "parts" / "one")
    assert record is not None and record["resumed_from_step"] == 0
    (told,) = [text for text in record["warnings"] if "was dropped" in text]
    assert ".work/0/latent.safetensors" in told
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")


def test_numbers_that_mean_nothing_are_dropped_under_a_right_checksum(
    prior: Prior, cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.recipes.view_surface.CANDIDATES", 8)
    made = job(cube, distillation="patches")
    run(made, prior, tmp_path / "whole")
    path = interrupt(made, prior, tmp_path / "parts", 9)
    for value in (99, -1):
        out = Path(shutil.copytree(tmp_path / "parts", tmp_path / f"{value} done"))
        remake(lambda tensors, v=value: tensors["scene.done"].fill_(v))(out / path.relative_to(tmp_path / "parts"))
        assert run(made, prior, out).state == "done"
        record = read_record(out / "one")
        assert record is not None and any("was dropped: checkpoint: " in text for text in record["warnings"])
        assert digest(out) == digest(tmp_path / "whole")


def digest(out: Path) -> str:
    return hashlib.sha256((out / "one" / "asset.glb").read_bytes()).hexdigest()


def test_a_checkpoint_is_plain_safetensors_with_its_checksum(prior: Prior, tmp_path: Path) -> None:
    path = tmp_path / "latent.safetensors"
    begun = subject(prior, 1, path=path)
    optimize([begun], prior, lockstep=1, stop=lambda: begun.step >= 3)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    head = json.loads(path.read_bytes()[8 : 8 + size])
    assert set(head["__metadata__"]) == {"format", "key", "step", "sha256"} and head["__metadata__"]["step"] == "3"
