"""The material network: its samples, losses, figures and training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.prior.material_net import CHANNELS, MaterialNet, estimate, log_scales, maps_of
from training import material
from training.compose import compose
from training.pool import write_pool
from training.samples import make_material
from training.settings import Settings, load

CONFIG = Path(__file__).parents[2] / "training" / "configs" / "smoke.toml"


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a work folder that has the pools of the material network."""
    settings = load(CONFIG, tmp_path_factory.mktemp("material"))
    for which in ("material", "material_held"):
        c = settings["pool"][which]
        write_pool(settings.work / "pool" / which, c["seed"], c["size"], c["shard"], c["shards"], maps=True)
    return settings


def _row(seed: int, index: int, size: int = 64) -> np.ndarray:
    s = make_material(seed, index, size)
    return np.concatenate([s.lit, s.albedo, s.maps], -1)


def _perfect(b: material.Batch) -> Tensor:
    """The raw output that says the truth, and is sure of it."""
    rough = torch.logit(b.roughness.clamp(0.01, 0.99))
    metal = (b.metalness * 2 - 1) * 8
    sure = torch.full_like(b.lit, -8)
    return torch.cat([b.albedo - b.lit, rough, metal, b.relief, b.slopes, sure], 1)


def _flats(count: int, pattern: str) -> list[np.ndarray]:
    found = (i for i in range(3000) if compose(31, i, any_light=True).camera is None)
    rows = (i for i in found if compose(31, i).scene.slots[0].pattern == pattern)
    return [_row(31, next(rows)) for _ in range(count)]


@pytest.mark.parametrize("turn", [False, True])
def test_slopes_are_those_of_the_relief_however_a_picture_is_turned(turn: bool) -> None:
    g = np.random.default_rng(2)
    for row in _flats(2, "brick") + _flats(2, "scales"):
        for _ in range(6 if turn else 1):
            b = material.batch_of((material.rotate_randomly(row, g) if turn else row)[None])
            right, up = material.relief_steps(b.relief)
            for k, step in enumerate((right, up)):
                said, measured = b.slopes[0, k, 2:-2, 2:-2].flatten(), step[0, 0, 2:-2, 2:-2].flatten()
                assert float(torch.corrcoef(torch.stack([said, measured]))[0, 1]) > 0.75


def test_any_size_gives_maps_of_that_size() -> None:
    net = MaterialNet((8, 12, 16), (2, 2, 2))
    for size in ((64, 64), (50, 71), (8, 8)):
        maps = estimate(net, torch.rand(2, 3, *size))
        for name, channels in (("albedo", 3), ("roughness", 1), ("metalness", 1), ("relief", 1), ("normal", 3)):
            assert getattr(maps, name).shape == (2, channels, *size)
        assert maps.albedo.min() >= 0 and maps.albedo.max() <= 1
        assert torch.allclose(maps.normal.norm(dim=1), torch.ones(2, *size), atol=1e-5)
        assert (maps.confidence > 0).all() and (maps.confidence <= 1).all()


def test_a_cut_out_is_read_as_within_the_whole() -> None:
    """No layer normalises over the picture: far from its border a tile has the maps it has in a large texture."""
    torch.manual_seed(0)
    net = MaterialNet((8, 12, 16), (2, 2, 2))
    for p in net.whole.parameters():
        nn.init.zeros_(p)
    x = torch.rand(1, 3, 256, 256)
    whole, part = net(x)[..., 64:192, 64:192], net(x[..., 64:192, 64:192])
    assert torch.allclose(whole[..., 56:72, 56:72], part[..., 56:72, 56:72], atol=1e-4)


def test_truth_costs_least_and_doubt_pays_where_one_is_wrong() -> None:
    b = material.batch_of(np.stack([_row(4, i) for i in range(6)]))
    perfect = _perfect(b)
    wrong = perfect.clone()
    wrong[:, :8] += torch.randn(wrong[:, :8].shape, generator=torch.Generator().manual_seed(1))
    truth, error = material.losses(perfect, b), material.losses(wrong, b)
    assert all(truth[k] < error[k] for k in truth)
    doubting = wrong.clone()
    doubting[:, 8:] = 3.0
    assert sum(material.losses(doubting, b).values()) < sum(error.values())
    assert maps_of(doubting, b.lit).confidence.mean() < maps_of(wrong, b.lit).confidence.mean()
    assert log_scales(perfect).min() >= -4


class _Oracle(nn.Module):
    """Says the truth of the pictures it was given, or nothing."""

    def __init__(self, shards: material.Shards, knows: bool) -> None:
        super().__init__()
        self.rows, self.knows, self.at = shards, knows, 0

    def forward(self, picture: Tensor) -> Tensor:
        n = len(picture)
        b = material.batch_of(np.stack([self.rows[self.at + i] for i in range(n)]))
        self.at += n
        return _perfect(b) if self.knows else torch.zeros(n, CHANNELS, *picture.shape[-2:])


def test_figures_of_one_who_knows_and_of_one_who_does_not(cfg: Settings) -> None:
    held = material.Shards(cfg.work / "pool" / "material_held")
    knowing = material.assess(_Oracle(held, True), held, 8, 4)
    assert knowing["psnr"] > 45 and knowing["metalness"] > 0.99
    assert knowing["angle"] < 1.5 and knowing["roughness"] < 0.02
    blank = material.assess(_Oracle(held, False), held, 8, 4)
    assert blank["gain"] == pytest.approx(0, abs=0.01)
    assert blank["angle"] == pytest.approx(blank["flat_angle"], abs=0.01)


def test_training_resumes_and_its_export_says_the_same(cfg: Settings, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    material.train(cfg, steps=3)
    material.train(cfg, steps=2)
    rows = [json.loads(line) for line in (cfg.work / "material.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r.get("begins")] == [0, 3]
    assert rows[-1]["step"] == 5 and np.isfinite(rows[-1]["psnr"])
    material.export(cfg, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    net = MaterialNet(config["widths"], config["blocks"])
    net.load_state_dict({k: v.float() for k, v in load_file(tmp_path / "model.safetensors").items()})
    x = torch.rand(1, 3, 40, 40)
    kept = estimate(material.load_average(cfg), x)
    assert torch.allclose(estimate(net, x).albedo, kept.albedo, atol=5e-3)
    held = material.Shards(cfg.work / "pool" / "material_held")
    image = material.picture_sheet(net, material.batch_of(held[0][None]).lit)
    assert image.size == (7 * 64, 66)


def test_a_pool_without_pictures_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"run training\.data pool --which material"):
        material.Shards(tmp_path / "material")
