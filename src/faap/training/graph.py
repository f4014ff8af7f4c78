"""A GPU's steps, recorded once and replayed: where models are small, telling the GPU each operation takes longest."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from faap.data import Batch

# steps of a kind that are made plainly first, so that all that is made once is there
WARM_UP = 3

Seen = dict[str, Tensor]


class Recorded:
    """Makes steps, and replays those that are like one that it has recorded: of the same shapes and schedules.

    What cannot be recorded is made plainly, as is whatever has something drawn for it.

    Args:
        step: `Trainer.step`; it waits for nothing, and what changes from step to step lies on the device.
    """

    def __init__(self, step: Callable[..., Seen]) -> None:
        self.step = step
        self.kinds: dict[Any, Any] = {}  # how often it was made, its recording, or None if it cannot be recorded

    def __call__(self, batch: Batch, drawn: Any, qualities: Sequence[int], schedule: Mapping[str, float]) -> Seen:
        """Make one step; see `Trainer.step`."""
        constant = tuple((name, value) for name, value in schedule.items() if name != "learning_rate")
        kind = (constant, batch.images.shape, batch.targets.labels.shape, batch.groups)
        if constant not in (known[0] for known in self.kinds):
            self.kinds.clear()  # schedules do not come back, and recordings are large
        made = self.kinds.setdefault(kind, 0)
        if drawn is not None or any(qualities) or batch.pixel_mask is not None or made is None:
            return self.step(batch, drawn, qualities, schedule)
        if isinstance(made, int) and made < WARM_UP:
            self.kinds[kind] += 1
            return self._aside(batch, schedule)
        if isinstance(made, int):
            try:
                made = self.kinds[kind] = self._record(batch, schedule)
            except RuntimeError:  # something in this detector waits
                torch.cuda.synchronize()
                self.kinds[kind] = None
                return self.step(batch, None, qualities, schedule)
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
            seen = self.step(batch, None, (), schedule)
        here.wait_stream(aside)
        return seen

    def _record(self, batch: Batch, schedule: Mapping[str, float]) -> tuple[Any, Batch, list[str], Tensor]:
        """Record a step without making it."""
        inputs, graph = batch.to(batch.images.device, copy=True), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            seen = self.step(inputs, None, (), schedule)
            row = torch.stack([value.float() for value in seen.values()])
        return graph, inputs, list(seen), row
