"""The number of scenes that share a call of the prior.

``fitting_batch_size`` measures the prior alone and returns the batch size for which a device has memory, before a run
and its rows are known. ``AdaptiveBatchSize`` measures the first real scenes of a kind, and corrects the batch size
while the loop runs: it halves it when memory does not suffice, and doubles it again after many rounds, because another
process may have held the memory. Both store the batch size in the user's cache, by prior, device and shape of views.
The batch size changes no more than the last bits of an asset's numbers; the record states it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from pipeline.core.errors import LatentkilnError
from pipeline.core.hashing import canonical_json, sha256_bytes
from pipeline.prior.cache import read_entry, write_entry

if TYPE_CHECKING:
    from pipeline.prior.load import Prior

_FILE = "lockstep.json"
WITHOUT_CUDA = 4
"""The batch size of ``fitting_batch_size`` on devices other than CUDA."""
# Share of the device's memory; the remainder covers what scenes keep between steps, and fragmentation.
_USABLE_SHARE = 0.85
# Rounds without lack of memory after which a halved batch size is doubled. Four times as many after each failure.
GROW_AFTER = 256
# How other libraries than torch report lack of memory, without underscores: CUDA's own calls and tiny-cuda-nn; cuBLAS;
# cuDNN; Warp; and nvdiffrast, which prints CUDA's error number.
_MEMORY_ERRORS = (
    "out of memory",
    "alloc failed",
    "allocation failed",
    "failed to allocate",
    "cudaerrormemoryallocation",
    "cuda error: 2[",
)


class OutOfMemory(LatentkilnError):
    """The device has not enough memory for a single scene."""

    stage = "distill"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error``, of torch or another library, reports that the device ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    message = str(error).lower().replace("_", " ")
    return isinstance(error, RuntimeError) and any(word in message for word in _MEMORY_ERRORS)


class AdaptiveBatchSize:
    """The number of scenes that share a call, ``current``; at most ``lockstep``.

    ``memory_key`` identifies everything that determines the memory of a scene, such as the shape of its views.
    """

    def __init__(self, prior: Prior, lockstep: int, memory_key: tuple[object, ...]):
        self._key, self._lockstep, self._prior = _key(prior, memory_key), lockstep, prior
        self._known = _stored_batch_size(self._key)
        self.current = min(lockstep, self._known or lockstep)
        self._rounds, self._grow_after = 0, GROW_AFTER

    def probe(self, step: Callable[[int], object], count: int) -> bool:
        """Set ``current`` to the batch size that fits a CUDA device, if it is not known yet. Returns True if it is
        smaller than the lockstep.

        ``step(n)`` does a step of n of the ``count`` scenes. It is measured for one and for two. All scenes are already
        on the device. If even one does not fit, the first real step raises the error.
        """
        if self._known or min(count, self._lockstep) < 2 or self._prior.device.type != "cuda":
            return False
        with self._prior.uncompiled():
            fits = _estimate(self._prior, step) or 1
        self.current = self._lockstep if fits >= self._lockstep else _power_of_two(fits)
        # A result above this lockstep serves a later run with a larger one.
        _store_batch_size(self._key, max(self.current, _power_of_two(fits)))
        if self.current == self._lockstep:
            return False
        self._grow_after *= 4
        return True

    def halve(self) -> None:
        """Halve ``current`` after it ran out of memory. Raises OutOfMemory if it was 1."""
        self._prior.release(everything=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.current == 1:
            raise OutOfMemory(
                "out of memory with one asset at a time; try --low-memory, or set views=1 or a smaller view_size"
            )
        self.current = (self.current + 1) // 2
        self._rounds, self._grow_after = 0, self._grow_after * 4
        _store_batch_size(self._key, self.current)

    def grow(self) -> bool:
        """Count a round without lack of memory. Returns True if that doubled ``current``."""
        self._rounds += 1
        if self.current >= self._lockstep or self._rounds < self._grow_after:
            return False
        self.current, self._rounds = min(self._lockstep, 2 * self.current), 0
        _store_batch_size(self._key, self.current)
        return True


def fitting_batch_size(
    prior: Prior,
    views: int,
    view_size: int,
    *,
    refine: bool = False,
    largest: int = 32,
    step: Callable[[int], object] | None = None,
) -> int:
    """The batch size, a power of two up to ``largest``, that fits into the memory of ``prior``'s device.

    It is measured once, in seconds, for this prior, device, number format and shape of views, then stored. The peaks of
    a step with one scene and with two give the cost of each further scene. The resulting batch size is tried, and
    halved until it fits. Without CUDA the result is ``WITHOUT_CUDA``.

    Args:
        views, view_size: number and side, in latent pixels, of a scene's views in a step.
        refine: whether views go through the prior's encoder, whose gradient takes memory for every scene.
        step: does a step for a number of scenes; by default the prior's part of it.

    Raises OutOfMemory if a single scene does not fit.
    """
    if prior.device.type != "cuda":
        return min(largest, WITHOUT_CUDA)
    key = _key(prior, ("fitting", views, view_size, refine, largest))
    if known := _stored_batch_size(key):
        return known
    try_step = step or (lambda count: _prior_step(prior, count, views, view_size, refine))
    # Do not compile here: it takes minutes for each batch size.
    with prior.uncompiled():
        fits = _estimate(prior, try_step, two_fit=largest > 1)
        if fits is None:
            raise OutOfMemory("out of memory with one asset at a time; try --low-memory, or a smaller view_size")
        batch_size = _power_of_two(min(largest, fits))
        while batch_size > 2 and _peak_bytes(prior, try_step, batch_size) is None:
            batch_size //= 2
    _store_batch_size(key, batch_size)
    return batch_size


def step_bytes(prior: Prior, count: int, views: int, view_size: int, *, refine: bool = False) -> int | None:
    """Peak of the bytes allocated on ``prior``'s CUDA device, weights included, in a step of ``count`` scenes.

    Returns None if memory ran out.
    """
    with prior.uncompiled():
        return _peak_bytes(prior, lambda number: _prior_step(prior, number, views, view_size, refine), count)


def device_bytes(device: torch.device) -> int:
    """Total memory of a CUDA device, in bytes."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def _power_of_two(count: int) -> int:
    """The largest power of two up to ``count``, at least 1."""
    return 1 << max(count.bit_length() - 1, 0) if count > 0 else 1


def _estimate(prior: Prior, step: Callable[[int], object], *, two_fit: bool = True) -> int | None:
    """Estimate the number of scenes that fit, from a step of one and, with ``two_fit``, a step of two; None if one does
    not fit."""
    device = prior.device
    peak_one = _peak_bytes(prior, step, 1)
    if peak_one is None:
        return None
    before = _bytes_of_others(device)
    peak_two = _peak_bytes(prior, step, 2) if two_fit else None
    if peak_two is None:
        return 1
    # All scenes cost the same. If the second scene seems to be free, its memory was hidden by one-time allocations of
    # the first call.
    each = max(peak_two - peak_one, 1 << 20)
    # Other libraries take at most as much for a scene as torch. Any further increase belongs to another process.
    each += min(max(_bytes_of_others(device) - before, 0), each)
    _, total = torch.cuda.mem_get_info(device.index)
    return max(1, int(1 + (_USABLE_SHARE * total - peak_one - before) / each))


def _bytes_of_others(device: torch.device) -> int:
    """Bytes of the device that are used outside this process's torch: by other libraries (tiny-cuda-nn's workspaces,
    nvdiffrast's images), CUDA itself and other processes."""
    free, total = torch.cuda.mem_get_info(device.index)
    return max(0, total - free - torch.cuda.memory_reserved(device))


def _peak_bytes(prior: Prior, step: Callable[[int], object], count: int) -> int | None:
    """Peak of the bytes allocated by ``step(count)``; None if memory ran out."""
    device = prior.device
    prior.release()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    if not _fits(step, count):
        prior.release()
        torch.cuda.empty_cache()
        return None
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device))


def _fits(step: Callable[[int], object], count: int) -> bool:
    try:
        step(count)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        # Returning drops the traceback, which holds the tensors of the failed step.
        return False
    return True


def _prior_step(prior: Prior, count: int, views: int, view_size: int, refine: bool) -> None:
    """The prior's work in a step of ``count`` scenes, on arbitrary numbers."""
    batch = count * views
    losses = []
    if refine:
        side = view_size * prior.vae_scale_factor
        for _ in range(count):
            image = torch.full((views, 3, side, side), 0.5, device=prior.device, requires_grad=True)
            losses.append(prior.encode(image).sum())
    noisy = torch.zeros(2 * batch, prior.latent_channels, view_size, view_size, device=prior.device)
    t = torch.full((2 * batch,), prior.train_steps // 2, device=prior.device)
    prior.predict_noise(noisy, t, prior.embed([""]).expand(2 * batch))
    for value in losses:
        value.backward()  # type: ignore[no-untyped-call]


def _key(prior: Prior, memory_key: tuple[object, ...]) -> str:
    device_name = str(prior.device)
    if prior.device.type == "cuda":
        properties = torch.cuda.get_device_properties(prior.device)
        device_name = f"{properties.name} {properties.total_memory}"
    fits = [prior.identity, device_name, str(prior.dtype), repr(prior.options), list(map(str, memory_key))]
    return sha256_bytes(canonical_json(fits))


def _stored_batch_size(key: str) -> int | None:
    known = read_entry(_FILE).get(key)
    return known if isinstance(known, int) and known >= 1 else None


def _store_batch_size(key: str, batch_size: int) -> None:
    write_entry(_FILE, read_entry(_FILE) | {key: batch_size})
