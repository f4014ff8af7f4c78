"""A GPU's steps, recorded once and replayed: where models are small, telling the GPU each operation takes longest."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from faap.data import Batch
from faap.perturbation.way import Way

# steps of a kind that are made plainly first, so that all that is made once is there
WARM_UP = 3

Seen = dict[str, Tensor]


class Recorded:
    """Makes steps, and replays those that are like one that it has recorded: of the same shapes and schedules.

    What has something drawn for it is made plainly, and so is everything once a recording has failed.

    Args:
        step: `Trainer.step`; it waits for nothing, and what changes from step to step lies on the device.
        most: targets of an image that are matched without waiting.
    """

    def __init__(self, step: Callable[..., Seen], most: int) -> None:
        self.step, self.most = step, most
        self.kinds: dict[Any, Any] = {}  # how often it was made, or its recording
        self.failed = False
        self.pool: Any = None

    def __call__(self, batch: Batch, way: Way, schedule: Mapping[str, float]) -> Seen:
        """Make one step; see `Trainer.step`."""
        constant = tuple((name, value) for name, value in schedule.items() if name != "learning_rate")
        kind = (constant, batch.images.shape, batch.targets.labels.shape, batch.groups)
        if constant not in (known[0] for known in self.kinds):
            self.kinds.clear()  # schedules do not come back, and recordings are large
        made = self.kinds.setdefault(kind, 0)
        if self.failed or not way.is_plain or batch.pixel_mask is not None or batch.targets.labels.shape[1] > self.most:
            return self.step(batch, way, schedule)
        if isinstance(made, int) and made < WARM_UP:
            self.kinds[kind] += 1
            return self._aside(batch, schedule)
        if isinstance(made, int):
            here = torch.cuda.current_stream()
            try:
                made = self.kinds[kind] = self._record(batch, schedule)
            except RuntimeError:  # something in this detector waits, or there is no memory for a recording
                torch.cuda.set_stream(here)  # torch stays on the recording's otherwise
                chance = torch.cuda.default_generators[torch.cuda.current_device()]
                chance.graphsafe_set_state(chance.clone_state())  # and would draw for a recording alone, as of dropout
                self.failed = True
                self.kinds.clear()
                return self.step(batch, way, schedule)
        graph, inputs, names, row = made
        for mine, theirs in zip(inputs.tensors(), batch.tensors(), strict=True):
            mine.copy_(theirs, non_blocking=True)
        graph.replay()
        return dict(zip(names, row.clone(), strict=True))

    def _aside(self, batch: Batch, schedule: Mapping[str, float]) -> Seen:
        """Make a step on a stream of its own, as recording will."""
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            seen = self.step(batch, Way(), schedule)
        here.wait_stream(aside)
        return seen

    def _record(self, batch: Batch, schedule: Mapping[str, float]) -> tuple[Any, Batch, list[str], Tensor]:
        """Record a step without making it."""
        inputs, graph = batch.to(batch.images.device, copy=True), torch.cuda.CUDAGraph()
        # recordings are replayed one at a time and share their memory; a thread that pins batches may go on meanwhile
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            seen = self.step(inputs, Way(), schedule)
            row = torch.stack([value.float() for value in seen.values()])
        return graph, inputs, list(seen), row
