"""DETR's set loss and its bipartite matching, over all decoder layers at once."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Activation = Literal["softmax", "sigmoid"]
Target = dict[str, Tensor]
Match = tuple[Tensor, Tensor]

BOX_WEIGHT = 5.0
GIOU_WEIGHT = 2.0
NO_OBJECT_WEIGHT = 0.1
CLASS_COST = {"softmax": 1.0, "sigmoid": 2.0}
FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0


def generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """Compute the generalised IoU of boxes, pair by pair with broadcasting.

    Args:
        first: boxes (..., 4), cxcywh with positive width and height.
        second: boxes (..., 4), of a shape that broadcasts with `first`.

    Returns:
        (...) values in (-1, 1].

    Source: Rezatofighi et al., Generalized Intersection over Union, CVPR 2019.
    """
    first_low, first_high = first[..., :2] - first[..., 2:] / 2, first[..., :2] + first[..., 2:] / 2
    second_low, second_high = second[..., :2] - second[..., 2:] / 2, second[..., :2] + second[..., 2:] / 2
    overlap = (torch.minimum(first_high, second_high) - torch.maximum(first_low, second_low)).clamp(min=0).prod(-1)
    union = first[..., 2:].prod(-1) + second[..., 2:].prod(-1) - overlap
    hull = (torch.maximum(first_high, second_high) - torch.minimum(first_low, second_low)).prod(-1)
    return overlap / union - (hull - union) / hull


@torch.no_grad()
def match_layers(logits: Tensor, boxes: Tensor, targets: Sequence[Target], activation: Activation) -> list[list[Match]]:
    """Assign queries to targets at the least total cost, for each decoder layer and image on its own.

    The cost of a pair is CLASS_COST x class cost + 5 x L1 distance - 2 x generalised IoU. The class cost is minus the
    softmax probability of the target's label, or the focal cost for sigmoid classifiers.

    Args:
        logits: (L, B, Q, C') class logits of L decoder layers.
        boxes: (L, B, Q, 4) boxes, cxcywh in [0, 1].
        targets: B dicts with "labels" (n,) and "boxes" (n, 4) cxcywh in [0, 1].
        activation: "softmax" (last column is no-object) or "sigmoid".

    Returns:
        L lists of B pairs (query_index, target_index) of CPU LongTensors, both of length min(Q, n), sorted by
        target_index.

    Source: Carion et al., End-to-End Object Detection with Transformers, ECCV 2020, section 3.1; Zhu et al.,
    Deformable DETR, ICLR 2021, appendix A.4, for the focal cost.
    """
    layers, batch = logits.shape[:2]
    counts = [len(target["labels"]) for target in targets]
    most = max(counts, default=0)
    nothing = torch.empty(0, dtype=torch.long)
    if most == 0:
        return [[(nothing, nothing)] * batch for _ in range(layers)]
    labels = torch.zeros(batch, most, dtype=torch.long, device=logits.device)
    wanted = torch.full((batch, most, 4), 0.5, device=logits.device)
    for image, target in enumerate(targets):
        labels[image, : counts[image]] = target["labels"]
        wanted[image, : counts[image]] = target["boxes"]

    scores = logits.float()
    if activation == "softmax":
        class_cost = -scores.softmax(-1)
    else:
        positive = FOCAL_ALPHA * scores.sigmoid().neg().add(1) ** FOCAL_GAMMA * F.softplus(-scores)
        negative = (1 - FOCAL_ALPHA) * scores.sigmoid() ** FOCAL_GAMMA * F.softplus(scores)
        class_cost = positive - negative
    index = labels[None, :, None, :].expand(layers, -1, scores.shape[2], -1)
    predicted, wanted = boxes.float()[:, :, :, None], wanted[None, :, None]  # (L, B, Q, 1, 4), (1, B, 1, T, 4)
    cost = CLASS_COST[activation] * class_cost.gather(3, index)
    cost = cost + BOX_WEIGHT * (predicted - wanted).abs().sum(-1) - GIOU_WEIGHT * generalized_iou(predicted, wanted)
    # A diverged detector gives NaN: the loss shall say so, not the assignment.
    matrix = np.nan_to_num(cost.transpose(2, 3).cpu().numpy(), nan=1e6, posinf=1e6, neginf=1e6)  # (L, B, T, Q)
    matches = []
    for layer in matrix:
        pairs = [linear_sum_assignment(rows[:count]) for rows, count in zip(layer, counts, strict=True)]
        matches.append([(torch.as_tensor(query), torch.as_tensor(target)) for target, query in pairs])
    return matches


def set_loss(
    logits: Tensor,
    boxes: Tensor,
    targets: Sequence[Target],
    matches: Sequence[Sequence[Match]],
    activation: Activation,
    *,
    no_object_weight: float = NO_OBJECT_WEIGHT,
) -> Tensor:
    """Sum the class, box and generalised IoU losses over all decoder layers.

    With softmax the class loss of a layer is the weighted mean of the cross-entropy over queries, unmatched queries
    being no-object with weight 0.1; with sigmoid it is the focal loss summed over queries and classes, divided by the
    number of targets. L1 (weight 5) and 1 - generalised IoU (weight 2) are summed over matched pairs and divided by
    the number of targets in the batch, at least 1.

    Args:
        logits: (L, B, Q, C') class logits of L decoder layers.
        boxes: (L, B, Q, 4) boxes, cxcywh in [0, 1].
        targets: B dicts with "labels" (n,) and "boxes" (n, 4) cxcywh in [0, 1].
        matches: the result of `match_layers` on the same arguments.
        activation: "softmax" (last column is no-object) or "sigmoid".
        no_object_weight: weight of the no-object class in the cross-entropy; softmax only.

    Returns:
        A scalar, differentiable with respect to logits and boxes.

    Source: Carion et al., ECCV 2020, section 3.1 and appendix A.2; Lin et al., Focal Loss, ICCV 2017.
    """
    layers, width = len(logits), logits.shape[-1]
    device = logits.device
    flat_labels = torch.cat([target["labels"] for target in targets])
    flat_boxes = torch.cat([target["boxes"] for target in targets]).float()
    offsets = np.cumsum([0] + [len(target["labels"]) for target in targets])
    # One index tensor for all layers and images, so that it goes to the device in one transfer.
    layer, image, query, wanted = torch.cat(
        [
            torch.stack([torch.full_like(q, depth), torch.full_like(q, i), q, t + int(offsets[i])])
            for depth, pairs in enumerate(matches)
            for i, (q, t) in enumerate(pairs)
        ],
        dim=1,
    ).to(device)

    scores = logits.float()
    classes = torch.full(scores.shape[:3], width - 1 if activation == "softmax" else width, device=device)
    classes[layer, image, query] = flat_labels[wanted]
    normaliser = max(1, len(flat_labels))
    if activation == "softmax":
        weight = torch.ones(width, device=device)
        weight[-1] = no_object_weight
        # Every layer has equally many matched queries, so the mean over all layers is the mean of the layers' means.
        class_loss = layers * F.cross_entropy(scores.flatten(0, 2), classes.flatten(), weight)
    else:
        truth = F.one_hot(classes, width + 1)[..., :-1].float()
        surprise = F.binary_cross_entropy_with_logits(scores, truth, reduction="none")
        error = (scores.sigmoid() - truth).abs()
        balance = FOCAL_ALPHA * truth + (1 - FOCAL_ALPHA) * (1 - truth)
        class_loss = (balance * error**FOCAL_GAMMA * surprise).sum() / normaliser

    predicted, truth_boxes = boxes.float()[layer, image, query], flat_boxes[wanted]
    box_loss = (predicted - truth_boxes).abs().sum() / normaliser
    giou_loss = (1 - generalized_iou(predicted, truth_boxes)).sum() / normaliser
    return class_loss + BOX_WEIGHT * box_loss + GIOU_WEIGHT * giou_loss
