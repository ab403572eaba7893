"""Opens a USD without following what lies outside its folder. Loaded by path in children; imports nothing of ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

# What a user's environment adds to the search for layers and plugins is not part of an asset.
for _name in ("PXR_AR_DEFAULT_SEARCH_PATH", "PXR_PLUGINPATH_NAME", "USD_ASSET_RESOLVER"):
    os.environ.pop(_name, None)

from pxr import Sdf, Tf, Usd  # noqa: E402

_ENDINGS = (".usd", ".usda", ".usdc")
_MOST_LAYERS = 2000
# An object of OpenUSD, which has no types.
Native = Any


def _take_out(layer: Native, asset: str) -> None:
    """Takes every reference to ``asset`` out of ``layer``. Raises RuntimeError if one remains."""
    # One call may change the sublayers only and leave the references of prims.
    for _ in range(4):
        if asset not in layer.GetCompositionAssetDependencies():
            return
        layer.UpdateCompositionAssetDependency(asset, "")
    raise RuntimeError(f"the reference to {asset[-80:]!r} cannot be left out")


class Layers:
    """The layers of a USD inside ``root``. ``losses`` names what was not followed.

    Every reference, payload and sublayer outside is taken out of the layer in memory before anything is composed.
    """

    def __init__(self, path: str, root: str):
        self.root = os.path.realpath(root)
        self.losses: list[str] = []
        top = Sdf.Layer.FindOrOpen(path)
        if top is None:
            raise RuntimeError("it is not USD, or damaged")
        self.top = top
        # Held, so that composition finds these layers as they were changed.
        self.layers = {top.identifier: top}
        queue = [top]
        while queue:
            layer = queue.pop()
            self._without_clips(layer)
            for asset in layer.GetCompositionAssetDependencies():
                found = self._followed(layer, asset)
                if found is None:
                    _take_out(layer, asset)
                elif found.identifier not in self.layers:
                    if len(self.layers) >= _MOST_LAYERS:
                        raise RuntimeError(f"it has more than {_MOST_LAYERS} layers")
                    self.layers[found.identifier] = found
                    queue.append(found)

    def _followed(self, layer: Native, asset: str) -> Native | None:
        """The layer that ``asset`` names in ``layer``; None if it must not or cannot be read."""
        if not asset:
            return None
        shown = asset[-80:]
        path = layer.ComputeAbsolutePath(asset)
        if "`" in asset or ":SDF_FORMAT_ARGS:" in path or "[" in path or not path.lower().endswith(_ENDINGS):
            self.losses.append(f"the layer {shown!r}, which is not a USD file by its ending")
        elif not self.inside(path):
            self.losses.append(f"the layer {shown!r}, which lies outside the file's folder")
        elif not os.path.isfile(path):
            self.losses.append(f"the layer {shown!r}, which does not exist")
        else:
            try:
                if (found := Sdf.Layer.FindOrOpen(path)) is not None:
                    return found
            except Tf.ErrorException:
                pass
            self.losses.append(f"the layer {shown!r}, which cannot be read")
        return None

    def _without_clips(self, layer: Native) -> None:
        """Takes out value clips: they name layers that are opened when a value is asked for."""
        clipped: list[Native] = []

        def visit(path: Native) -> None:
            spec = layer.GetObjectAtPath(path)
            if isinstance(spec, Sdf.PrimSpec) and (spec.HasInfo("clips") or spec.HasInfo("clipSets")):
                clipped.append(spec)

        layer.Traverse(Sdf.Path.absoluteRootPath, visit)
        for spec in clipped:
            spec.ClearInfo("clips")
            spec.ClearInfo("clipSets")
            self.losses.append(f"value clips of {spec.path}")

    def inside(self, path: str) -> bool:
        """Tells whether ``path`` lies in the root folder, links followed."""
        real = os.path.realpath(path)
        return os.path.isabs(path) and os.path.commonpath([real, self.root]) == self.root

    def relative(self, layer: Native, asset: str) -> str:
        """The path of ``asset``, as ``layer`` names it, from the root folder; as it is written if it lies outside."""
        path = layer.ComputeAbsolutePath(asset) if asset else ""
        return os.path.relpath(path, self.root) if path and self.inside(path) else asset

    def stage(self) -> Native:
        """The composed stage."""
        return Usd.Stage.Open(self.top)

    def assets(self) -> Iterator[str]:
        """The paths, from the root folder, of the files that attributes of the layers name."""
        for layer in list(self.layers.values()):
            found: list[str] = []

            def visit(path: Native, layer: Native = layer, found: list[str] = found) -> None:
                spec = layer.GetObjectAtPath(path)
                if isinstance(spec, Sdf.AttributeSpec) and isinstance(spec.default, Sdf.AssetPath):
                    found.append(spec.default.path)

            layer.Traverse(Sdf.Path.absoluteRootPath, visit)
            for asset in found:
                yield self.relative(layer, asset)
