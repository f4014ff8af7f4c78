"""One batch whose images lie in several processes: what each found in its own, brought together."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional as F

from faap import distributed
from faap.data import Batch
from faap.detectors import DetectorOutput, FrozenDetector, Match

Target = dict[str, Tensor]
Whole = tuple[DetectorOutput, list[Target], list[str], list[list[Match]] | None]


def padded_alike(batch: Batch) -> Batch:
    """Pad this process's images as a single process would pad the whole batch: a detector may see the difference."""
    if distributed.world() == 1:
        return batch
    height, width = batch.pixel_mask.shape[1:]
    sizes = distributed.merge([(height, width)])
    more = (0, max(size[1] for size in sizes) - width, 0, max(size[0] for size in sizes) - height)
    return replace(
        batch, pixel_values=F.pad(batch.pixel_values, more), pixel_mask=F.pad(batch.pixel_mask, more, value=False)
    )


def bring_together(
    detector: FrozenDetector, out: DetectorOutput, targets: Sequence[Target], groups: Sequence[str], own: int, head: str
) -> Whole:
    """Join the processes' parts of a batch, so that every process computes the loss of the whole.

    The outputs keep their gradient (see `distributed.gather`). Images are matched where they lie.

    Args:
        detector: the frozen detector.
        out: its output for this process's images.
        targets: theirs, dicts with "labels" (n,) and "boxes" (n, 4) cxcywh in [0, 1].
        groups: the group of each.
        own: how many of them, from the front, belong to the batch; the rest stand in where there is nothing to do.
        head: the group whose images come first in a batch.

    Returns:
        Output, targets and groups of the whole batch in the order a single process has them, and the matching of every
        decoder layer; with a single process what was given, and None.
    """
    if distributed.world() == 1:
        return out, list(targets), list(groups), None
    device = out.logits.device
    tensors = [tensor[:own] for tensor in (out.logits, out.boxes, out.features, *chain(*out.aux))]
    mine = _output(tensors)
    layers = detector.match_all_layers(mine, targets[:own])
    images = distributed.merge(
        [
            ({key: value.cpu() for key, value in target.items()}, group, [layer[i] for layer in layers])
            for i, (target, group) in enumerate(zip(targets[:own], groups, strict=False))
        ]
    )
    order = sorted(range(len(images)), key=lambda i: images[i][1] != head)
    # one message for all tensors
    rows = distributed.gather(torch.cat([tensor.flatten(1).float() for tensor in tensors], 1))[order]
    columns = torch.split(rows, [tensor.shape[1:].numel() for tensor in tensors], 1)
    whole = [part.view(-1, *tensor.shape[1:]) for part, tensor in zip(columns, tensors, strict=True)]
    return (
        _output(whole),
        [{key: value.to(device) for key, value in images[i][0].items()} for i in order],
        [images[i][1] for i in order],
        [[images[i][2][layer] for i in order] for layer in range(len(layers))],
    )


def _output(tensors: Sequence[Tensor]) -> DetectorOutput:
    logits, boxes, features, *aux = tensors
    return DetectorOutput(logits, boxes, features, list(zip(aux[::2], aux[1::2], strict=True)))
