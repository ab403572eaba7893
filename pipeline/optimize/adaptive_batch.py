"""How many scenes go through the prior at once.

``fitting_batch_size`` finds the number that a device has memory for, by measuring the prior's part, before a run and
its rows are known. ``AdaptiveBatchSize`` starts from what the first real scenes of a kind take, with all that is
theirs, and corrects it while the loop runs: half as many when memory does not suffice after all, and after a long while
twice as many again, should somebody else have held the memory then. All is remembered for this prior, device and kind
of view, in this user's cache. Numbers do not depend on the width; the last bits may, so the record says which it was.
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
"""What ``fitting_batch_size`` answers where there is no device memory to measure."""
# Of the device's memory; the rest is for what scenes keep between their steps, and for fragmentation.
_USABLE_SHARE = 0.85
# Rounds without lack of memory after which a width that was halved is doubled; four times as many after each failure.
GROW_AFTER = 256
# How libraries beside torch say it, without underscores: CUDA's own calls and tiny-cuda-nn; cuBLAS; cuDNN; Warp; and
# nvdiffrast, which prints CUDA's number of the error.
_MEMORY_ERRORS = (
    "out of memory",
    "alloc failed",
    "allocation failed",
    "failed to allocate",
    "cudaerrormemoryallocation",
    "cuda error: 2[",
)


class OutOfMemory(LatentkilnError):
    """Not even one scene fits the device's memory."""

    stage = "distill"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that the device's memory did not suffice, in torch's words or in another library's."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    message = str(error).lower().replace("_", " ")
    return isinstance(error, RuntimeError) and any(word in message for word in _MEMORY_ERRORS)


class AdaptiveBatchSize:
    """The number of scenes that share a call, ``current``; at most ``lockstep``.

    ``kind``: what decides how much memory a scene takes, for scenes of one batch the shape of their views.
    """

    def __init__(self, prior: Prior, lockstep: int, memory_key: tuple[object, ...]):
        self._key, self._lockstep, self._prior = _key(prior, memory_key), lockstep, prior
        self._known = _stored_batch_size(self._key)
        self.current = min(lockstep, self._known or lockstep)
        self._rounds, self._grow_after = 0, GROW_AFTER

    def probe(self, step: Callable[[int], object], count: int) -> bool:
        """Sets ``current`` to what the memory of a CUDA device carries, where that is not known yet. True when it is
        less than was asked for.

        ``step(n)``: a step of n of the ``count`` real scenes, done with one and with two. All scenes are on the device
        by then, and are counted. Where not even one step works, the first real one will say so.
        """
        if self._known or min(count, self._lockstep) < 2 or self._prior.device.type != "cuda":
            return False
        with self._prior.uncompiled():
            fits = _estimate(self._prior, step) or 1
        self.current = self._lockstep if fits >= self._lockstep else _power_of_two(fits)
        # What was found beyond this lockstep counts for a later one.
        _store_batch_size(self._key, max(self.current, _power_of_two(fits)))
        if self.current == self._lockstep:
            return False
        self._grow_after *= 4
        return True

    def halve(self) -> None:
        """After memory did not suffice for ``current`` scenes. Raises OutOfMemory when that was one."""
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
        """After a round that had the memory it needed. True when the next one is wider."""
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
    """The lockstep width, a power of two up to ``largest``, for which ``prior``'s device has memory.

    Measured once for this prior, device, number format and shape of views, then remembered: the peak of a step with
    one scene and with two gives what each further one costs; the width that follows is tried, and halved until it
    works. Takes seconds. Without CUDA there is nothing to measure, and the answer is ``WITHOUT_CUDA``.

    Args:
        views, view_size: of a step of one scene, in latent pixels a side.
        refine: whether views go through the prior's encoder, whose gradient keeps memory for every scene.
        step: does a whole step for so many scenes; by default the prior's part alone.

    Raises OutOfMemory where not even one scene fits.
    """
    if prior.device.type != "cuda":
        return min(largest, WITHOUT_CUDA)
    key = _key(prior, ("fitting", views, view_size, refine, largest))
    if known := _stored_batch_size(key):
        return known
    try_step = step or (lambda count: _prior_step(prior, count, views, view_size, refine))
    # Not compiled: that takes minutes for each number of scenes.
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
    """Most bytes allocated on ``prior``'s CUDA device, its own weights included, by a step of ``count`` scenes; None
    where memory did not suffice."""
    with prior.uncompiled():
        return _peak_bytes(prior, lambda number: _prior_step(prior, number, views, view_size, refine), count)


def device_bytes(device: torch.device) -> int:
    """All memory of a CUDA device, whoever holds it."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def _power_of_two(count: int) -> int:
    """The largest not above ``count``, at least 1: the UNet's batches are made of powers of two."""
    return 1 << max(count.bit_length() - 1, 0) if count > 0 else 1


def _estimate(prior: Prior, step: Callable[[int], object], *, two_fit: bool = True) -> int | None:
    """The number of scenes whose step should fit, from steps of one and, if ``two_fit`` says it may be tried, of two;
    None where not even one fits."""
    device = prior.device
    one = _peak_bytes(prior, step, 1)
    if one is None:
        return None
    before = _bytes_of_others(device)
    two = _peak_bytes(prior, step, 2) if two_fit else None
    if two is None:
        return 1
    # Scenes cost alike; where the second seems to cost nothing, the first call's own needs hid it.
    each = max(two - one, 1 << 20)
    # Libraries beside torch take no more for a scene than torch; what came in addition is another process's.
    each += min(max(_bytes_of_others(device) - before, 0), each)
    _, total = torch.cuda.mem_get_info(device.index)
    return max(1, int(1 + (_USABLE_SHARE * total - one - before) / each))


def _bytes_of_others(device: torch.device) -> int:
    """Bytes of the device that are taken, but not by torch here: other libraries (tiny-cuda-nn's workspaces,
    nvdiffrast's images), CUDA itself, other processes."""
    free, total = torch.cuda.mem_get_info(device.index)
    return max(0, total - free - torch.cuda.memory_reserved(device))


def _peak_bytes(prior: Prior, step: Callable[[int], object], count: int) -> int | None:
    """Most bytes allocated at a time by ``step(count)``, or None when memory did not suffice."""
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
        # Left at once: the traceback holds on to the tensors of the step that failed.
        return False
    return True


def _prior_step(prior: Prior, count: int, views: int, view_size: int, refine: bool) -> None:
    """What ``count`` scenes ask of the prior in a step, on numbers that mean nothing."""
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
        value.backward()


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
