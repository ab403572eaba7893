"""Tasks that wait for a worker: a bounded window of the plan, the most expensive first."""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Callable, Hashable

from pipeline.core.job import Job
from pipeline.scheduler.tasks import Task

# Tasks held in memory at a time, however long the manifest is.
WINDOW = 2048
# Assumed where a row leaves a setting to the prior. Only the order of tasks depends on it.
_TYPICAL = {"steps": 300, "views": 4, "view_size": 32, "refine_steps": 0, "seeds": 1}


def estimated_cost(job: Job) -> float:
    """Estimate the work of a job in latent pixels that are rendered and denoised. Used only to order tasks."""

    def setting(name: str) -> float:
        value = job.settings.get(name)
        return float(value if isinstance(value, (int, float)) else _TYPICAL[name])

    steps = setting("steps") + (setting("refine_steps") if job.settings.get("refine") else 0)
    return steps * setting("views") * setting("view_size") ** 2 * max(1.0, setting("seeds"))


class TaskQueue:
    """The tasks that wait. The most expensive comes first, so that no run ends with one long row that started last.

    Tasks of equal cost keep their order.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        # Tasks that can share calls of the prior, by what they must have in common.
        self._new: dict[Hashable, list[tuple[float, int, Task]]] = {}
        self._alone: deque[Task] = deque()
        self._delayed: list[tuple[float, int, Task]] = []
        self._number = 0

    def __len__(self) -> int:
        return sum(map(len, self._new.values())) + len(self._alone) + len(self._delayed)

    def add(self, row: Task, *, delay: float = 0.0) -> None:
        """Add ``row``. It is not handed out for ``delay`` seconds."""
        self._number += 1
        if delay > 0:
            heapq.heappush(self._delayed, (self._clock() + delay, self._number, row))
        elif row.alone:
            self._alone.append(row)
        else:
            heapq.heappush(self._new.setdefault(_batch_key(row.job), []), (-estimated_cost(row.job), self._number, row))

    def take(self, lockstep: int, workers: int, *, all_known: bool) -> list[Task]:
        """Return the next batch for one worker, or [] if no task can start now.

        A batch holds at most ``lockstep`` tasks that can share calls of the prior. When no more tasks will be added
        (``all_known``), it holds fewer if that keeps all ``workers`` busy. Recipes pad their calls, so the composition
        of a batch changes no byte of an asset.
        """
        self._release_due()
        if not self._new:
            # Tasks that may kill their worker come last, when the others are done.
            return [self._alone.popleft()] if self._alone else []
        batch, rows = min(self._new.items(), key=lambda pair: pair[1][0][:2])
        size, count = lockstep, len(rows)
        if all_known:
            # Evened out, so that no worker gets a single leftover task at the end.
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
    """Jobs with equal keys can share a call of the prior: one recipe, views of one size, one set of LoRAs."""
    loras = tuple(file for file in job.adapters if file.kind == "lora")
    shape = [job.settings.get(name) for name in ("views", "view_size", "patch_views", "patch_size")]
    return job.recipe, *shape, loras
