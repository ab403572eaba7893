"""Settings after resolution, and the phases that recipes make of them."""

from __future__ import annotations

import pytest

from pipeline.core.errors import SettingError
from pipeline.prior.defaults import GenerateDefaults, PaintDefaults
from pipeline.recipes import PHASE_STAGES
from pipeline.recipes.generate import Generate
from pipeline.recipes.generate_settings import GenerateOptions, GenerateSettings, Texturing, resolve_generate
from pipeline.recipes.paint import Paint
from pipeline.recipes.paint_settings import Distillation, PaintOptions, PaintSettings, resolve_paint

# None is a value of these: no colour, no limit, no sketch, a size, threshold or map that the recipe computes.
NONE_IS_A_VALUE = {
    "base_colour", "max_seconds", "tile_size", "shapes", "sketch_fit", "density_threshold",
    "metallic", "roughness", "roughness_min", "roughness_max", "target", "uv_set", "variant",
}  # fmt: skip


@pytest.mark.parametrize(("options", "settings"), [(PaintOptions, PaintSettings), (GenerateOptions, GenerateSettings)])
def test_options_and_settings_have_the_same_names_in_the_same_order(options, settings):
    assert list(options.model_fields) == list(settings.model_fields)


def test_resolved_settings_leave_nothing_open():
    for settings in (
        resolve_paint(PaintOptions(), vars(PaintDefaults())),
        resolve_generate(GenerateOptions(), vars(GenerateDefaults())),
    ):
        open_settings = {name for name, value in settings if value is None}
        assert open_settings == NONE_IS_A_VALUE & set(type(settings).model_fields)


def test_zero_is_a_value_of_a_setting():
    own = vars(GenerateDefaults())
    settings = resolve_generate(GenerateOptions(surface_blur=0, lambda_shape=0, guidance_scale=0), own)
    assert (settings.surface_blur, settings.lambda_shape, settings.guidance_scale) == (0, 0, 0)


def test_whole_numbers_of_a_prior_become_floats():
    settings = resolve_paint(PaintOptions(), vars(PaintDefaults(guidance_scale=8)))
    assert isinstance(settings.guidance_scale, float)
    assert isinstance(settings.model_dump(mode="json")["guidance_scale"], float)


def test_a_default_of_the_wrong_type_is_an_error_that_names_it():
    with pytest.raises(SettingError, match="the prior's default for steps: Input should be a valid integer"):
        resolve_paint(PaintOptions(), {**vars(PaintDefaults()), "steps": "many"})
    with pytest.raises(SettingError, match="the prior's default for background: Input should be 'random' or 'learned'"):
        resolve_paint(PaintOptions(), vars(PaintDefaults(background="plain")))


def test_a_priors_steps_are_for_its_own_way() -> None:
    own = vars(PaintDefaults(steps=60, distillation="patches", patch_size=32))
    ways: tuple[Distillation | None, ...] = (None, "patches", "score")
    left_out, patches, score = (resolve_paint(PaintOptions(distillation=how), own) for how in ways)
    assert (left_out.steps, patches.steps, score.steps) == (60, 60, 300)
    assert resolve_paint(PaintOptions(distillation="score", steps=7), own).steps == 7
    assert (left_out.patch_size, left_out.patch_views) == (32, left_out.views)


@pytest.mark.parametrize(
    ("distillation", "refine", "names"),
    [
        ("score", False, ["latent"]),
        ("patches", True, ["latent", "rgb"]),
        ("material", False, []),
    ],
)
def test_phases_of_a_painted_row(distillation: Distillation, refine: bool, names: list[str]) -> None:
    options = PaintOptions(distillation=distillation, refine=refine)
    phases = Paint().phases(resolve_paint(options, vars(PaintDefaults())))
    assert [phase.name for phase in phases] == names


@pytest.mark.parametrize(
    ("texturing", "refine", "names"),
    [("views", False, ["latent"]), ("patches", False, ["latent", "texture"]), (None, True, ["latent", "rgb"])],
)
def test_phases_of_a_generated_row(texturing: Texturing | None, refine: bool, names: list[str]) -> None:
    options = GenerateOptions(texturing=texturing, refine=refine)
    phases = Generate().phases(resolve_generate(options, vars(GenerateDefaults())))
    assert [phase.name for phase in phases] == names
    # Draws of one phase must not repeat in another.
    assert len({phase.stream for phase in phases}) == len(phases)
    assert [phase.stage for phase in phases] == [PHASE_STAGES[name] for name in names]
