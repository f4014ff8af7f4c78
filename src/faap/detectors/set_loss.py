"""The set loss of DETR and its kin, and its bipartite matching, over all decoder layers at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Activation = Literal["softmax", "sigmoid"]
ClassLoss = Literal["cross_entropy", "focal", "varifocal", "quality"]
Target = dict[str, Tensor]
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


@torch.no_grad()
def match_layers(logits: Tensor, boxes: Tensor, targets: Sequence[Target], criterion: Criterion) -> list[list[Match]]:
    """Assign queries to targets at the least total cost, for each decoder layer and image on its own.

    The cost of a pair is class_cost x class cost + box_cost x L1 distance - giou_cost x generalised IoU. The class cost
    is minus the softmax probability of the target's label, or the focal cost for sigmoid classifiers.

    Args:
        logits: (L, B, Q, C') class logits of L decoder layers.
        boxes: (L, B, Q, 4) boxes, cxcywh in [0, 1].
        targets: B dicts with "labels" (n,) and "boxes" (n, 4) cxcywh in [0, 1].
        criterion: the costs.

    Returns:
        L lists of B pairs (query_index, target_index) of CPU LongTensors, both of length min(Q, n), sorted by
        target_index.

    Source: Carion et al., End-to-End Object Detection with Transformers, ECCV 2020, section 3.1; Zhu et al.,
    Deformable DETR, ICLR 2021, appendix A.4, for the focal cost.
    """
    layers = len(logits)
    counts = [len(target["labels"]) for target in targets]
    labels = pad_sequence([target["labels"] for target in targets], batch_first=True)  # (B, T)
    wanted = pad_sequence([target["boxes"].float() for target in targets], batch_first=True, padding_value=0.5)

    scores = logits.float()
    index = labels[None, :, None].expand(layers, -1, scores.shape[2], -1)
    if criterion.activation == "softmax":
        class_cost = -scores.softmax(-1).gather(3, index)
    else:
        alpha, gamma = criterion.cost_alpha, criterion.cost_gamma
        scores = scores.gather(3, index)
        positive = alpha * scores.sigmoid().neg().add(1) ** gamma * F.softplus(-scores)
        negative = (1 - alpha) * scores.sigmoid() ** gamma * F.softplus(scores)
        class_cost = positive - negative
    predicted = _boxes(boxes, criterion)
    cost = criterion.class_cost * class_cost.transpose(2, 3)  # (L, B, T, Q), as the solver takes it
    cost = cost + criterion.box_cost * torch.cdist(wanted.expand(layers, -1, -1, -1), predicted, p=1)
    cost = cost - criterion.giou_cost * generalized_iou(predicted[:, :, None], wanted[:, :, None])
    # A diverged detector gives NaN: the loss shall say so, not the assignment.
    matches = []
    for layer in cost.nan_to_num(1e6, 1e6, 1e6).cpu().numpy():
        pairs = [linear_sum_assignment(rows[:count]) for rows, count in zip(layer, counts, strict=True)]
        matches.append([(torch.as_tensor(query), torch.as_tensor(target)) for target, query in pairs])
    return matches


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
    layers, width, device = len(logits), logits.shape[-1], logits.device
    flat_labels = torch.cat([target["labels"] for target in targets])
    flat_boxes = torch.cat([target["boxes"] for target in targets]).float()
    offsets = np.cumsum([0] + [len(target["labels"]) for target in targets])
    indices = [
        torch.stack([torch.full_like(q, depth), torch.full_like(q, i), q, t + int(offsets[i])])
        for depth, pairs in enumerate(matches)
        for i, (q, t) in enumerate(pairs)
    ]
    # one tensor for all layers and images, so that it goes to the device in one transfer
    layer, image, query, wanted = torch.cat(indices, dim=1).to(device)

    scores = logits.float()
    softmax, normaliser = criterion.activation == "softmax", max(1, len(flat_labels))
    classes = torch.full(scores.shape[:3], width - 1 if softmax else width, device=device)
    classes[layer, image, query] = flat_labels[wanted]
    predicted, truth_boxes = _boxes(boxes, criterion)[layer, image, query], flat_boxes[wanted]
    if softmax:
        weight = torch.ones(width, device=device)
        weight[-1] = criterion.no_object_weight
        # Every layer has equally many matched queries, so the mean over all layers is the mean of the layers' means.
        class_loss = layers * F.cross_entropy(scores.flatten(0, 2), classes.flatten(), weight)
    else:
        truth = F.one_hot(classes, width + 1)[..., :-1].float()
        overlap = torch.zeros(scores.shape[:3], device=device)
        overlap[layer, image, query] = _ious(predicted.detach(), truth_boxes)[0]
        class_loss = _sigmoid_loss(scores, truth, overlap[..., None], criterion).sum() / normaliser

    box_loss = (predicted - truth_boxes).abs().sum() / normaliser
    giou_loss = (1 - generalized_iou(predicted, truth_boxes)).sum() / normaliser
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
