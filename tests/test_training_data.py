"""The training images: deterministic, captioned in known words, labelled consistently."""

from __future__ import annotations

import numpy as np
import pytest

from training.data import MATERIAL_NAMES, make, read_pool, write_pool
from training.shapes import THINGS, assembly, blob
from training.vocabulary import COLOURS, MATERIALS, VIEWS, natural, swatch, tinted, token_words, words


def test_same_seed_and_index_give_the_same_image() -> None:
    a, b, c = make(3, 17), make(3, 17), make(3, 18)
    assert np.array_equal(a.pixels, b.pixels)
    assert a.caption == b.caption
    assert not np.array_equal(a.pixels, c.pixels)


def test_captions_use_known_words_only() -> None:
    known = set(words())
    for i in range(150):
        sample = make(5, i, 16)
        unknown = set(sample.caption.replace(",", " ").split()) - known
        assert not unknown, sample.caption
        assert sample.pixels.shape == (16, 16, 3)
        assert sample.pixels.dtype == np.uint8


def test_said_views_are_in_the_caption_and_colours_too() -> None:
    seen = 0
    for i in range(200):
        s = make(6, i, 8)
        if s.view >= 0:
            assert s.caption.endswith(f"{VIEWS[s.view]} view")
            seen += 1
        if s.material >= 0 and s.thing == 0:
            m = MATERIALS[MATERIAL_NAMES[s.material]]
            assert any(w in s.caption for w in m.nouns + m.adjectives)
    assert seen > 20


def test_domain_is_as_wide_as_promised() -> None:
    assert len(MATERIALS) >= 30
    assert len(COLOURS) >= 12
    assert len(THINGS) >= 14
    assert sum(t.front for t in THINGS.values()) >= 5


def test_names_in_reserve_are_not_taught() -> None:
    reserve = set(token_words()) - set(words())
    assert {"denim", "teddy", "crate"} <= reserve
    samples = [make(7, i, 8) for i in range(300)]
    assert not reserve & {word for s in samples for word in s.caption.replace(",", " ").split()}
    assert {s.material for s in samples if s.material >= 0} == set(range(len(MATERIALS)))


@pytest.mark.parametrize("name", list(THINGS))
def test_every_thing_fits_the_unit_ball(name: str) -> None:
    rows = THINGS[name].build(np.random.default_rng(1)).array()
    assert np.isfinite(rows).all()
    assert np.abs(rows[:, 1:4]).max() < 1.3


def test_any_shape_is_finite() -> None:
    g = np.random.default_rng(2)
    for _ in range(20):
        assert np.isfinite(assembly(g)).all()
        prims, warp = blob(g)
        assert np.isfinite(prims).all()
        assert warp.shape == (3,)


def test_palettes_follow_the_colour() -> None:
    g = np.random.default_rng(0)
    for name, m in MATERIALS.items():
        assert tinted(g, swatch(g, "red"), m.tint).shape == (3, 3)
        p = natural(g, name)
        assert p.min() >= 0.0
        assert p.max() <= 1.0


def test_pool_is_written_once_and_read_back(tmp_path) -> None:
    write_pool(tmp_path, 4, 16, 6, 2)
    stamp = (tmp_path / "00000.npy").stat().st_mtime_ns
    write_pool(tmp_path, 4, 16, 6, 2)
    pixels, captions, labels = read_pool(tmp_path)
    assert (tmp_path / "00000.npy").stat().st_mtime_ns == stamp
    assert pixels.shape == (12, 16, 16, 3)
    assert len(captions) == len(labels) == 12
    assert captions[7] == make(4, 7, 16).caption
