"""The set loss of DETR and its kin, and its bipartite matching, over all decoder layers at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from faap.data.targets import Target, Targets

Activation = Literal["softmax", "sigmoid"]
ClassLoss = Literal["cross_entropy", "focal", "varifocal", "quality"]
Match = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Criterion:
    """What a family of detectors charges for in matching and in its loss; the defaults are DETR's.

    Attributes:
        class_loss: "cross_entropy" with a trailing no-object class, for softmax scores; or for sigmoid scores "focal"
            (Deformable DETR), "varifocal" (RT-DETR: the target is the matched box's IoU) or "quality" (LW-DETR: the
            target is score^alpha x IoU^(1 - alpha), at least 0.01).
        class_cost: weight of the class in matching.
        box_cost: weight of the L1 distance in matching.
        giou_cost: weight of the generalised IoU in matching.
        cost_alpha: balance of the focal cost that sigmoid scores are matched by.
        cost_gamma: exponent of that cost.
        class_weight: weight of the class loss.
        box_weight: weight of the L1 loss.
        giou_weight: weight of the generalised IoU loss.
        no_object_weight: weight of the no-object class in the cross-entropy.
        alpha: balance of the sigmoid losses.
        gamma: exponent of the sigmoid losses.
        clamp: cut boxes' coordinates to [0, 1] before anything is charged (D-FINE).
    """

    class_loss: ClassLoss = "cross_entropy"
    class_cost: float = 1.0
    box_cost: float = 5.0
    giou_cost: float = 2.0
    cost_alpha: float = 0.25
    cost_gamma: float = 2.0
    class_weight: float = 1.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    no_object_weight: float = 0.1
    alpha: float = 0.25
    gamma: float = 2.0
    clamp: bool = False

    @property
    def activation(self) -> Activation:
        """How class scores are read off the logits."""
        return "softmax" if self.class_loss == "cross_entropy" else "sigmoid"


# targets of an image up to which a GPU matches by itself: what it does grows as the square, and its waiting does not
FEW = 8

SOFTMAX = Criterion()
SIGMOID = Criterion("focal", class_cost=2.0)


def generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """Compute the generalised IoU of boxes, pair by pair with broadcasting.

    Args:
        first: boxes (..., 4), cxcywh with positive width and height.
        second: boxes (..., 4), of a shape that broadcasts with `first`.

    Returns:
        (...) values in (-1, 1].

    Source: Rezatofighi et al., Generalized Intersection over Union, CVPR 2019.
    """
    return _ious(first, second)[1]


def _ious(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU."""
    # Coordinate by coordinate: reductions over a last axis of two are slow.
    (left, top, right, bottom), (left2, top2, right2, bottom2) = _corners(first), _corners(second)
    width = (torch.minimum(right, right2) - torch.maximum(left, left2)).clamp(min=0)
    height = (torch.minimum(bottom, bottom2) - torch.maximum(top, top2)).clamp(min=0)
    overlap = width * height
    union = first[..., 2] * first[..., 3] + second[..., 2] * second[..., 3] - overlap
    hull_width = torch.maximum(right, right2) - torch.minimum(left, left2)
    hull_height = torch.maximum(bottom, bottom2) - torch.minimum(top, top2)
    iou = overlap / union
    return iou, iou + union / (hull_width * hull_height) - 1


def _corners(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y, width, height = boxes.unbind(-1)
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


@dataclass(frozen=True)
class Matches(Sequence[list[Match]]):
    """Which query each target has, in each decoder layer: for each layer a pair (query, target) of indices an image.

    Attributes:
        queries: (L, B, T) int64, -1 for none, where the detector's outputs are.
    """

    queries: Tensor

    @classmethod
    def of(cls, matches: Sequence[Sequence[Match]], targets: Targets) -> "Matches":
        """Return matches that may be in single pairs as one."""
        if isinstance(matches, cls):
            return matches
        rows = torch.full((len(matches), *targets.labels.shape), -1)
        for row, (query, target) in zip(rows.flatten(0, 1), chain.from_iterable(matches), strict=True):
            row[target.cpu().long()] = query.cpu().long()
        return cls(rows.to(targets.labels.device))

    def __len__(self) -> int:
        """Return L."""
        return len(self.queries)

    def __getitem__(self, layer: int) -> list[Match]:  # type: ignore[override]
        """Return the pairs of one layer, on the CPU."""
        images = self.queries[layer].cpu()
        return [(image[image >= 0], (image >= 0).nonzero()[:, 0]) for image in images]


@torch.no_grad()
def match_layers(logits: Tensor, boxes: Tensor, targets: Sequence[Target], criterion: Criterion) -> Matches:
    """Assign queries to targets at the least total cost, for each decoder layer and image on its own.

    The cost of a pair is class_cost x class cost + box_cost x L1 distance - giou_cost x generalised IoU. The class cost
    is minus the softmax probability of the target's label, or the focal cost for sigmoid classifiers.

    Args:
        logits: (L, B, Q, C') class logits of L decoder layers.
        boxes: (L, B, Q, 4) boxes, cxcywh in [0, 1].
        targets: B dicts with "labels" (n,) and "boxes" (n, 4) cxcywh in [0, 1].
        criterion: the costs.

    Returns:
        For each layer B pairs (query_index, target_index) of CPU LongTensors, both of length min(Q, n), sorted by
        target_index. On a GPU few targets are matched there, and many at the price of waiting for it once.

    Source: Carion et al., End-to-End Object Detection with Transformers, ECCV 2020, section 3.1; Zhu et al.,
    Deformable DETR, ICLR 2021, appendix A.4, for the focal cost.
    """
    layers, packed = len(logits), Targets.of(targets)
    scores = logits.float()
    index = packed.labels[None, :, None].expand(layers, -1, scores.shape[2], -1)
    if criterion.activation == "softmax":
        class_cost = -scores.softmax(-1).gather(3, index)
    else:
        alpha, gamma = criterion.cost_alpha, criterion.cost_gamma
        scores = scores.gather(3, index)
        positive = alpha * scores.sigmoid().neg().add(1) ** gamma * F.softplus(-scores)
        negative = (1 - alpha) * scores.sigmoid() ** gamma * F.softplus(scores)
        class_cost = positive - negative
    predicted, wanted = _boxes(boxes, criterion), packed.boxes.float()
    cost = criterion.class_cost * class_cost.transpose(2, 3)  # (L, B, T, Q), as the solver takes it
    cost = cost + criterion.box_cost * torch.cdist(wanted.expand(layers, -1, -1, -1), predicted, p=1)
    cost = cost - criterion.giou_cost * generalized_iou(predicted[:, :, None], wanted[:, :, None])
    # A diverged detector gives NaN: the loss shall say so, not the assignment.
    cost = cost.nan_to_num(1e6, 1e6, 1e6)
    there = cost.device.type != "cpu" and cost.shape[2] <= min(FEW, cost.shape[3])
    return Matches((_solve_there if there else _solve_here)(cost, packed))


def _solve_here(cost: Tensor, targets: Targets) -> Tensor:
    rows = np.full(cost.shape[:3], -1)
    for layer, costs in zip(rows, cost.cpu().numpy(), strict=True):
        for row, each, count in zip(layer, costs, targets.counts, strict=True):
            target, query = linear_sum_assignment(each[:count])
            row[target] = query
    return torch.from_numpy(rows).to(cost.device)


def _solve_there(cost: Tensor, targets: Targets) -> Tensor:
    # what only fills up takes a query that is left, at no cost
    found = assign(torch.where(targets.real[..., None], cost, 0).flatten(0, 1)).view(cost.shape[:3])
    return torch.where(targets.real, found, -1)


def assign(cost: Tensor) -> Tensor:
    """Solve N assignment problems at once, exactly, without looking at any number: nobody waits for the device.

    Rows enter one by one, each by the shortest augmenting path, whose length is at most the number of rows so far.

    Args:
        cost: (N, T, Q) finite, T ≤ Q.

    Returns:
        (N, T) int64: the column of each row; all differ, at the least total cost.

    Source: Jonker and Volgenant, A shortest augmenting path algorithm, Computing 38, 1987.
    """
    problems, rows, columns = cost.shape
    # the column 0 stands for the row that enters, the row 0 for nobody
    padded = F.pad(cost, (1, 0, 1, 0))
    owner = cost.new_zeros(problems, columns + 1, dtype=torch.long)
    of_row, of_column = cost.new_zeros(problems, rows + 1), cost.new_zeros(problems, columns + 1)
    for row in range(1, rows + 1):
        owner[:, 0] = row
        column = owner.new_zeros(problems, 1)
        way, done = torch.zeros_like(owner), torch.zeros_like(owner, dtype=torch.bool)
        least = torch.full_like(of_column, math.inf)
        for _ in range(row):
            current = owner.gather(1, column)  # (N, 1)
            going = current > 0
            done = done.scatter(1, column, going | done.gather(1, column))
            here = padded.gather(1, current[..., None].expand(-1, -1, columns + 1))[:, 0]
            here = here - of_row.gather(1, current) - of_column
            closer = going & ~done & (here < least)
            least, way = torch.where(closer, here, least), torch.where(closer, column, way)
            step, nearest = torch.where(done, math.inf, least).min(1, keepdim=True)
            step = torch.where(going, step, 0)
            moved = torch.where(done, step, 0)
            of_row = of_row.scatter_add(1, owner, moved)
            of_column, least = of_column - moved, torch.where(done, least, least - step)
            column = torch.where(going, nearest, column)
        for _ in range(row):
            before = way.gather(1, column)
            owner = owner.scatter(1, column, owner.gather(1, before))
            column = before
    taken = cost.new_zeros(problems, rows + 1, dtype=torch.long)
    places = torch.arange(columns, device=cost.device).expand(problems, -1)
    return taken.scatter(1, owner[:, 1:], places)[:, 1:]


def set_loss(
    logits: Tensor, boxes: Tensor, targets: Sequence[Target], matches: Sequence[Sequence[Match]], criterion: Criterion
) -> Tensor:
    """Sum the weighted class, box and generalised IoU losses over all decoder layers.

    With softmax the class loss of a layer is the weighted mean of the cross-entropy over queries, unmatched queries
    being no-object with a weight of their own; with sigmoid it is the focal, varifocal or quality loss summed over
    queries and classes, divided by the number of targets. L1 and 1 - generalised IoU are summed over matched pairs and
    divided by the number of targets in the batch, at least 1.

    Args:
        logits: (L, B, Q, C') class logits of L decoder layers.
        boxes: (L, B, Q, 4) boxes, cxcywh in [0, 1].
        targets: B dicts with "labels" (n,) and "boxes" (n, 4) cxcywh in [0, 1].
        matches: the result of `match_layers` on the same arguments.
        criterion: the class loss and the weights.

    Returns:
        A scalar, differentiable with respect to logits and boxes.

    Source: Carion et al., ECCV 2020, section 3.1 and appendix A.2; Lin et al., Focal Loss, ICCV 2017; Zhang et al.,
    VarifocalNet, CVPR 2021, eq. 2; Chen et al., LW-DETR, arXiv:2406.03459, section 3.2.
    """
    layers, batch, queries, width = logits.shape
    packed = Targets.of(targets)
    query = Matches.of(matches, packed).queries  # (L, B, T)
    matched = query >= 0
    labels = packed.labels.expand(layers, -1, -1)
    slot = torch.where(matched, query, queries)  # beyond the last one for who has none

    scores = logits.float()
    softmax, normaliser = criterion.activation == "softmax", packed.real.sum().clamp(min=1)
    classes = labels.new_full((layers, batch, queries + 1), width - 1 if softmax else width)
    classes = classes.scatter(2, slot, labels)[..., :-1]
    predicted = _boxes(boxes, criterion).gather(2, query.clamp(min=0)[..., None].expand(-1, -1, -1, 4))
    truth = packed.boxes.float().expand(layers, -1, -1, -1)
    overlap, generalised = _ious(predicted, truth)
    if softmax:
        weight = torch.cat([scores.new_ones(width - 1), scores.new_full((1,), criterion.no_object_weight)])
        # Every layer has equally many matched queries, so the mean over all layers is the mean of the layers' means.
        class_loss = layers * F.cross_entropy(scores.flatten(0, 2), classes.flatten(), weight)
    else:
        wanted = F.one_hot(classes, width + 1)[..., :-1].float()
        overlaps = scores.new_zeros(layers, batch, queries + 1).scatter(2, slot, overlap.detach())[..., :-1]
        class_loss = _sigmoid_loss(scores, wanted, overlaps[..., None], criterion).sum() / normaliser

    box_loss = torch.where(matched, (predicted - truth).abs().sum(-1), 0).sum() / normaliser
    giou_loss = torch.where(matched, 1 - generalised, 0).sum() / normaliser
    return criterion.class_weight * class_loss + criterion.box_weight * box_loss + criterion.giou_weight * giou_loss


def _sigmoid_loss(scores: Tensor, truth: Tensor, overlap: Tensor, criterion: Criterion) -> Tensor:
    """Class loss (L, B, Q, C) of every score, given one-hot truth (L, B, Q, C) and matched IoU (L, B, Q, 1)."""
    alpha, gamma = criterion.alpha, criterion.gamma
    probability = scores.sigmoid()
    if criterion.class_loss == "focal":
        surprise = F.binary_cross_entropy_with_logits(scores, truth, reduction="none")
        balance = alpha * truth + (1 - alpha) * (1 - truth)
        return balance * (probability - truth).abs() ** gamma * surprise
    if criterion.class_loss == "varifocal":
        wanted = overlap * truth
        weight = alpha * probability.detach() ** gamma * (1 - truth) + wanted
        return F.binary_cross_entropy_with_logits(scores, wanted, weight, reduction="none")
    wanted = (probability.detach() ** alpha * overlap ** (1 - alpha)).clamp(min=0.01) * truth
    # unlike the others this one lets the gradient through the weight of the negatives
    rest = torch.where(truth > 0, 1 - wanted, probability**gamma)
    return wanted * F.softplus(-scores) + rest * F.softplus(scores)


def _boxes(boxes: Tensor, criterion: Criterion) -> Tensor:
    return boxes.float().clamp(0, 1) if criterion.clamp else boxes.float()
