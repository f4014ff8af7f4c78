"""One batch whose images lie in several processes. With a single process each function gives back what it was given."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faap import distributed
from faap.data import Batch
from faap.detectors import DetectorOutput, FrozenDetector, Match
from faap.objectives.numerics import widen

Whole = tuple[DetectorOutput, Sequence[dict[str, Tensor]], Sequence[str], Sequence[list[Match]]]


def padded_alike(batch: Batch) -> Batch:
    """Pad this process's images as a single process would pad the whole batch: a detector may see the difference."""
    if distributed.world() == 1:
        return batch
    mine, mask = batch.images.shape[2:], batch.pixel_mask
    height, width = map(max, zip(*distributed.gather_objects([tuple(mine)]), strict=True))
    if mine == (height, width):
        return batch
    more = (0, width - mine[1], 0, height - mine[0])
    mask = torch.ones_like(batch.images[:, 0], dtype=torch.bool) if mask is None else mask
    return replace(batch, images=F.pad(batch.images, more), pixel_mask=F.pad(mask, more, value=False))


def whole_batch(detector: FrozenDetector, out: DetectorOutput, batch: Batch, first: str) -> Whole:
    """Join the processes' parts of a batch, so that every process computes the loss of the whole.

    The outputs keep their gradient (see `distributed.gather`). Images are matched where they lie.

    Args:
        detector: the frozen detector.
        out: its output for this process's images.
        batch: those images.
        first: the group whose images come first in a batch.

    Returns:
        Output, targets, groups and the matching of every decoder layer, of the whole batch in the order in which a
        single process has it.
    """
    layers = detector.match_all_layers(out, batch.targets)
    if distributed.world() == 1:
        return out, batch.targets, batch.groups, layers
    device = out.logits.device
    targets = [{key: value.cpu() for key, value in target.items()} for target in batch.targets]
    images = distributed.gather_objects(list(zip(targets, batch.groups, *layers, strict=True)))
    order = sorted(range(len(images)), key=lambda i: images[i][1] != first)
    targets, groups, *matches = map(list, zip(*(images[i] for i in order), strict=True))
    # one message for all tensors
    tensors = [out.logits, out.boxes, out.features, *chain(*out.aux)]
    rows = distributed.gather(torch.cat([widen(tensor.flatten(1)) for tensor in tensors], 1))[order]
    columns = torch.split(rows, [tensor.shape[1:].numel() for tensor in tensors], 1)
    parts = [part.view(-1, *tensor.shape[1:]) for part, tensor in zip(columns, tensors, strict=True)]
    whole = DetectorOutput(parts[0], parts[1], parts[2], list(zip(parts[3::2], parts[4::2], strict=True)))
    return whole, [{key: value.to(device) for key, value in target.items()} for target in targets], groups, matches


@torch.no_grad()
def sum_gradients(generator: Sequence[nn.Parameter], head: Sequence[nn.Parameter] = ()) -> None:
    """Give every process the gradient of the whole batch: the generator saw the process's own images, the head all."""
    for each in head:
        if each.grad is not None:
            each.grad /= distributed.world()
    distributed.all_reduce_sum([each.grad for each in (*generator, *head) if each.grad is not None])
