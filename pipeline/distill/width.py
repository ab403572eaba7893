"""How many scenes go through the prior at once: as many as were asked for, half as many when memory does not suffice.

What fits is remembered for this prior, device and kind of view, in the process and in this user's cache, so that it
is found out once. Numbers do not depend on the width; the last bits may, so the record says which it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pipeline.core.content import canonical_json, sha256_bytes
from pipeline.core.errors import LatentkilnError
from pipeline.prior.cache import read_entry, write_entry

if TYPE_CHECKING:
    from pipeline.prior.load import Prior

_FILE = "lockstep.json"


class OutOfMemory(LatentkilnError):
    """Not even one scene fits the device's memory."""

    stage = "distill"


class Width:
    """The number of scenes that share a call, ``now``; at most ``lockstep``.

    ``kind``: what decides how much memory a scene takes, for scenes of one batch the shape of their views.
    """

    def __init__(self, prior: Prior, lockstep: int, kind: tuple[object, ...]):
        place = str(prior.device)
        if prior.device.type == "cuda":
            found = torch.cuda.get_device_properties(prior.device)
            place = f"{found.name} {found.total_memory}"
        fits = [prior.identity, place, str(prior.dtype), repr(prior.options), list(map(str, kind))]
        self._key = sha256_bytes(canonical_json(fits))
        known = read_entry(_FILE).get(self._key)
        self.now = min(lockstep, known) if isinstance(known, int) and known >= 1 else lockstep

    def halve(self) -> None:
        """After memory did not suffice for ``now`` scenes. Raises OutOfMemory when that was one."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.now == 1:
            raise OutOfMemory(
                "out of memory with one asset at a time; try --low-memory, or set views=1 or a smaller view_size"
            )
        self.now = (self.now + 1) // 2
        write_entry(_FILE, read_entry(_FILE) | {self._key: self.now})
