"""Rows that wait for a worker: a bounded window of the plan, the longest work first."""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Callable, Hashable

from pipeline.core.job import Job
from pipeline.scheduler.tasks import Task

# Rows that are held in memory at a time, however long the manifest is.
WINDOW = 2048
# What counts where a row leaves a setting to the prior: only the order depends on it.
_TYPICAL = {"steps": 300, "views": 4, "view_size": 32, "refine_steps": 0, "seeds": 1}


def estimated_cost(job: Job) -> float:
    """How much work a job is, in latent pixels drawn and denoised: to order rows, not to promise times."""

    def setting(name: str) -> float:
        value = job.settings.get(name)
        return float(value if isinstance(value, (int, float)) else _TYPICAL[name])

    steps = setting("steps") + (setting("refine_steps") if job.settings.get("refine") else 0)
    return steps * setting("views") * setting("view_size") ** 2 * max(1.0, setting("seeds"))


class TaskQueue:
    """The rows that wait. Of those added, the one with the most work comes first, so that no run ends waiting
    for one long row begun last; rows of equal work keep their order."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        # Rows that can share their prior's batches, by what they must have in common.
        self._new: dict[Hashable, list[tuple[float, int, Task]]] = {}
        self._alone: deque[Task] = deque()
        self._delayed: list[tuple[float, int, Task]] = []
        self._number = 0

    def __len__(self) -> int:
        return sum(map(len, self._new.values())) + len(self._alone) + len(self._delayed)

    def add(self, row: Task, *, delay: float = 0.0) -> None:
        """``row`` waits, not to begin before ``delay`` seconds have gone by."""
        self._number += 1
        if delay > 0:
            heapq.heappush(self._delayed, (self._clock() + delay, self._number, row))
        elif row.alone:
            self._alone.append(row)
        else:
            heapq.heappush(self._new.setdefault(_batch_key(row.job), []), (-estimated_cost(row.job), self._number, row))

    def take(self, lockstep: int, workers: int, *, all_known: bool) -> list[Task]:
        """The next group for one worker, [] where none can begin now.

        At most ``lockstep`` rows that share batches; fewer where that leaves none of ``workers`` idle (``all_known``:
        no further rows will be added). The recipe pads its batches, so who stands beside whom changes no byte.
        """
        self._release_due()
        if not self._new:
            # What is suspected of killing workers comes last: the others' work is safe by then.
            return [self._alone.popleft()] if self._alone else []
        batch, rows = min(self._new.items(), key=lambda pair: pair[1][0][:2])
        size, count = lockstep, len(rows)
        if all_known:
            # Evened out, so that neither the last group nor a worker is left with a straggler.
            share = max(1, workers // len(self._new))
            size = math.ceil(count / max(math.ceil(count / lockstep), min(share, count)))
        group = [heapq.heappop(rows)[2] for _ in range(min(size, count))]
        if not rows:
            del self._new[batch]
        return group

    def _release_due(self) -> None:
        now = self._clock()
        while self._delayed and self._delayed[0][0] <= now:
            self.add(heapq.heappop(self._delayed)[2])


def _batch_key(job: Job) -> Hashable:
    """Jobs with the same value can share a call of the prior: one recipe, views of one size, one set of LoRAs."""
    loras = tuple(file for file in job.adapters if file.kind == "lora")
    shape = [job.settings.get(name) for name in ("views", "view_size", "patch_views", "patch_size")]
    return job.recipe, *shape, loras
