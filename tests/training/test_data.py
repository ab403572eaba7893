"""The training images: deterministic, captioned in known words, labelled consistently."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.raster.camera import angles, view_words
from training.compose import any_camera, compose, slot_of
from training.data import MATERIAL_NAMES, OBJECT_NAMES, make, read_pool, write_pool
from training.looks import METALS, Look
from training.patterns import PATTERNS, TABLE, VARIANTS, Points
from training.patterns.surface import Surface
from training.render import DIM, SLOT
from training.shapes import THINGS, assembly, blob
from training.vocabulary import (
    ALL_MATERIALS,
    COLOURS,
    LATER,
    MATERIALS,
    VIEWS,
    natural,
    swatch,
    tinted,
    token_words,
    words,
)


def test_same_seed_and_index_give_the_same_image() -> None:
    a, b, c = make(3, 17), make(3, 17), make(3, 18)
    assert np.array_equal(a.pixels, b.pixels)
    assert a.caption == b.caption
    assert not np.array_equal(a.pixels, c.pixels)


def test_a_larger_flat_piece_goes_on_around_the_small_one() -> None:
    """Of the same pixels: what a latent of a larger picture shows must look as in a small one."""
    flats = [i for i in range(60) if compose(3, i).camera is None]
    assert len(flats) > 5
    for i in flats:
        small, large = make(3, i, 32), make(3, i, 64)
        assert large.caption == small.caption
        # Occlusion and shadows know what lies beyond the border.
        difference = np.abs(large.pixels[22:42, 22:42].astype(int) - small.pixels[6:26, 6:26])
        assert np.median(difference) <= 2 and difference.mean() < 5


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
        s = compose(6, i)
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
    samples = [compose(7, i) for i in range(400)]
    assert not reserve & {word for s in samples for word in s.caption.replace(",", " ").split()}
    assert {s.material for s in samples if s.material >= 0} == set(range(len(MATERIALS)))


def test_every_known_word_is_taught() -> None:
    """A word that no caption holds must not pass for known: what it would do to a picture is left to chance."""
    said: set[str] = set()
    for i in range(12_000):
        said |= set(compose(1, i).caption.replace(",", " ").split())
    assert said == set(words())


def test_words_that_came_later_leave_the_first_tokens_alone() -> None:
    import json

    from training.text import BOS, make_tokenizer

    tokenizer = make_tokenizer()
    table = tokenizer.get_vocab()
    shipped = Path(__file__).parents[2] / "pipeline" / "prior" / "embedded" / "tokenizer" / "tokenizer.json"
    first = json.loads(shipped.read_text())["model"]["vocab"]
    assert {word: table[word] for word in first} == first
    assert all(table[f"{word}</w>"] > table[BOS] for word in LATER)
    assert all(len(tokenizer(word).input_ids) == 3 for word in words())


def test_weights_of_fewer_tokens_load_and_read_later_words_as_nothing() -> None:
    from training import text

    v = text.Vocabulary()
    c = {"width": 16, "layers": 1, "heads": 2}
    stored = text.build(v, c).state_dict()
    key = next(k for k in stored if k.endswith("token_embedding.weight"))
    fewer = {**stored, key: stored[key][: v.bos + 2].clone()}
    model = text.build(v, c)
    text.load_encoder(model, fewer, v)
    rows = model.state_dict()[key]
    assert (rows[: v.bos + 2] == fewer[key]).all()
    later = [v.tokenizer.get_vocab()[f"{word}</w>"] for word in LATER]
    assert (rows[later] == fewer[key][v.empty]).all()


def test_view_words_are_those_of_the_program() -> None:
    g = np.random.default_rng(9)
    unsaid = 0
    for _ in range(600):
        camera, view, _ = any_camera(g, False)
        theta, phi = angles(camera[:3])
        if view:
            assert view_words(theta, phi) == [view]
        else:
            unsaid += 1
            # Near a border of two words.
            assert len(set(view_words(theta, phi + np.radians([-9, 9])))) == 2
    assert 30 < unsaid < 150


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


def _line(name: str, palette: np.ndarray, count: int, g: np.random.Generator) -> Surface:
    """The pattern along a line through an object, two units of texture for ten points."""
    x, y, z = (np.float32(v) for v in g.uniform(-40, 40, 3))
    h = np.linspace(0, 0.2 * count, count, dtype=np.float32)
    upright = name != "zebra"
    u, v = (np.full_like(h, x), y + h) if upright else (x + h, np.full_like(h, y))
    return TABLE[name](Points(u, v, np.full_like(h, z), u, v), palette.astype(np.float32), int(g.integers(1, 999)))


@pytest.mark.parametrize("name", ["zebra", "tiger", "stripes", "checker", "camouflage"])
def test_bands_and_patches_repeat_across_an_object(name: str) -> None:
    """An object of 64 pixels is five units of texture wide or more."""
    g = np.random.default_rng(2)
    palette = np.array([[0, 0, 0], [1, 1, 1], [1, 1, 1]], float)
    changes = []
    for _ in range(24):
        second = _line(name, palette, 28, g).albedo.mean(0) > 0.5
        changes.append(int((second[1:] != second[:-1]).sum()))
    assert np.median(changes) >= 3  # two bands or patches at least; with fewer, a tiger is a ball with a line


@pytest.mark.parametrize("colour", ["white", "black"])
@pytest.mark.parametrize("name", ["water", "marble", "lava", "cobblestone", "tiles"])
def test_patterns_show_in_the_lightest_and_the_darkest_colour(name: str, colour: str) -> None:
    g = np.random.default_rng(3)
    rows = [tinted(g, swatch(g, colour), MATERIALS[name].tint) @ (0.3, 0.59, 0.11) for _ in range(20)]
    assert min(np.ptp(row) for row in rows) > 0.12


def test_what_shows_two_materials_has_no_label() -> None:
    parts = {f" with {said}" for t in THINGS.values() for said in t.named_parts} | {" with patina"}
    for index in range(600):
        c = compose(11, index)
        two = (" with ", " and ", " covered ", "mossy ", "rusty ", "snowy ")
        said = c.caption
        for part in sorted(parts, key=len, reverse=True):
            said = said.replace(part, "")
        if c.material >= 0:
            assert " with " not in said, c.caption
        elif not any(word in c.caption for word in two):
            assert c.thing > 1, c.caption  # a thing in its own materials


def test_a_named_material_is_seen_from_above_too() -> None:
    named, own, roofs = [], [], 0
    for i in range(1500):
        c = compose(8, i)
        if OBJECT_NAMES[c.thing] not in ("house", "castle"):
            continue
        has_roof = bool((c.scene.prims[:, SLOT] == 1).any())
        if c.material >= 0:
            named.append(has_roof)
        elif "red roof" in c.caption or "tiled roof" in c.caption or "tiled red roof" in c.caption:
            roofs += 1
            assert has_roof
        elif not any(w in c.caption for w in (" with ", " and ", " covered ", "mossy ", "rusty ", "snowy ")):
            own.append(has_roof)
    assert len(named) > 30 and not any(named)
    assert len(own) > 5 and all(own)
    assert roofs > 5


def test_parts_that_are_said_are_there() -> None:
    """A house has panes in its windows, a barrel hoops, a castle towers."""
    seen = set()
    for i in range(2500):
        c = compose(12, i)
        name = OBJECT_NAMES[c.thing]
        for word, slot in (("windows", 2), ("door", 3), ("hoops", 1), ("wheels", 1)):
            if word in c.caption.split():
                seen.add((name, word))
                assert (c.scene.prims[:, SLOT] == slot).any(), c.caption
                assert slot in c.scene.slots
                if word == "door":
                    assert c.camera[2] > 0, c.caption  # seen from the front
    assert {("house", "windows"), ("house", "door"), ("barrel", "hoops"), ("car", "wheels")} <= seen


@pytest.mark.parametrize(
    "name", ["stripes", "checker", "brick", "planks", "tiles", "stone", "snow", "water", "fur", "metal", "copper"]
)
def test_patterns_with_a_direction_are_near_upright(name: str) -> None:
    g = np.random.default_rng(4)
    for _ in range(60):
        slot = slot_of(g, Look(name, "", -1, natural(g, name)), 1.0)
        # The texture's own up axis.
        assert slot.turn[1, 1] > np.cos(np.radians(20))


def test_boards_of_a_barrel_stand() -> None:
    turns = [
        c.scene.slots[0].turn[1, 1]
        for c in (compose(13, i) for i in range(3000))
        if OBJECT_NAMES[c.thing] == "barrel" and c.scene.slots[0].pattern == "planks"
    ]
    assert len(turns) > 5 and max(np.abs(turns)) < 0.1


def test_every_pattern_has_a_palette() -> None:
    assert tuple(ALL_MATERIALS) == PATTERNS
    assert not set(VARIANTS) & set(PATTERNS)
    assert set(METALS) <= set(MATERIALS)


def test_pool_is_written_once_and_read_back(tmp_path: Path) -> None:
    write_pool(tmp_path, 4, 16, 6, 2)
    stamp = (tmp_path / "00000.npy").stat().st_mtime_ns
    write_pool(tmp_path, 4, 16, 6, 2)
    pixels, captions, labels = read_pool(tmp_path)
    assert (tmp_path / "00000.npy").stat().st_mtime_ns == stamp
    assert pixels.shape == (12, 16, 16, 3)
    assert len(captions) == len(labels) == 12
    assert captions[7] == make(4, 7, 16).caption


def test_a_pool_of_other_sources_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    write_pool(tmp_path, 4, 8, 2, 2)
    assert "other sources" not in capsys.readouterr().out
    monkeypatch.setattr("training.pool.generator_hash", lambda: "another")
    write_pool(tmp_path, 4, 8, 2, 3)
    assert "2 shards were made by other sources" in capsys.readouterr().out


def test_rays_reach_the_corners_of_cubes() -> None:
    for seed in range(20):
        (row,) = THINGS["cube"].build(np.random.default_rng(seed)).array(1.15)
        assert np.linalg.norm(row[DIM : DIM + 3]) < 1.35
