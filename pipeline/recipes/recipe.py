"""The interface of a recipe: what a recipe defines, and ``recipes.build`` calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Generic

from pipeline.core.job import Job
from pipeline.prior.load import Prior
from pipeline.recipes.asset_build import Asset, AssetBuild, InputsT, Phase, RowContext, ScenesT, SettingsT, Variant


class Recipe(ABC, Generic[SettingsT, InputsT, ScenesT]):
    """A way to make assets, generic over resolved settings, the inputs of a row and the scenes of a variant."""

    name: ClassVar[str]

    @abstractmethod
    def resolve(self, job: Job, prior: Prior) -> SettingsT:
        """The job's settings, completed with the prior's defaults. Raises SettingError."""

    @abstractmethod
    def prepare(self, row: RowContext, settings: SettingsT, prior: Prior, out: Path) -> InputsT:
        """Read what all variants of a row share. ``out`` is the output root, for caches. Raises LatentkilnError."""

    @abstractmethod
    def new_scenes(self) -> ScenesT:
        """The scenes of a variant of which no phase was begun."""

    @abstractmethod
    def phases(self, settings: SettingsT) -> list[Phase[SettingsT, InputsT, ScenesT]]:
        """The optimisations that ``settings`` ask for, in order; [] where nothing is optimised."""

    @abstractmethod
    def uses_close_ups(self, settings: SettingsT) -> bool:
        """Whether a row asks the prior for close-ups of the surface, in a phase or elsewhere."""

    @abstractmethod
    def finish(
        self, asset_build: AssetBuild[SettingsT, InputsT, ScenesT], variant: Variant[ScenesT], prior: Prior
    ) -> Asset:
        """Mesh and maps of a variant whose phases are done. Raises LatentkilnError."""

    @abstractmethod
    def backends(self, settings: SettingsT, device: str) -> dict[str, str]:
        """Names of the backends, by operation, that decide the asset's bytes besides the rasteriser. ``device`` is a
        torch device type."""
