"""The matching against brute force, the loss against a slow loop and against the library."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from transformers import ConditionalDetrConfig, DetrConfig, ResNetConfig
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from faap.data.targets import Targets
from faap.detectors.set_loss import (
    SIGMOID,
    SOFTMAX,
    Matches,
    _solve_there,
    assign,
    generalized_iou,
    match_layers,
    set_loss,
)

CRITERIA = {"softmax": SOFTMAX, "sigmoid": SIGMOID}

LAYERS, BATCH, QUERIES, CLASSES = 3, 3, 5, 2
COUNTS = (2, 0, 3)


def slow_giou(a: Tensor, b: Tensor) -> Tensor:
    ax0, ay0, ax1, ay1 = a[0] - a[2] / 2, a[1] - a[3] / 2, a[0] + a[2] / 2, a[1] + a[3] / 2
    bx0, by0, bx1, by1 = b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2
    zero = torch.tensor(0.0)
    inter = max(zero, min(ax1, bx1) - max(ax0, bx0)) * max(zero, min(ay1, by1) - max(ay0, by0))
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - inter
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return inter / union - (hull - union) / hull


def slow_pair_cost(logits: Tensor, box: Tensor, label: int, wanted: Tensor, activation: str) -> float:
    if activation == "softmax":
        class_cost = -float(logits.softmax(-1)[label])
    else:
        p = 1 / (1 + math.exp(-float(logits[label])))
        class_cost = 2 * (0.25 * (1 - p) ** 2 * -math.log(p) - 0.75 * p**2 * -math.log(1 - p))
    return class_cost + 5 * float((box - wanted).abs().sum()) - 2 * float(slow_giou(box, wanted))


def slow_match(logits: Tensor, boxes: Tensor, target: dict[str, Tensor], activation: str) -> set[tuple[int, int]]:
    """The cheapest of all assignments of one image, by trying every one."""
    queries, targets = range(len(boxes)), range(len(target["labels"]))
    cost = {
        (q, t): slow_pair_cost(logits[q], boxes[q], int(target["labels"][t]), target["boxes"][t], activation)
        for q in queries
        for t in targets
    }
    if len(queries) >= len(targets):
        candidates = [
            list(zip(chosen, targets, strict=True)) for chosen in itertools.permutations(queries, len(targets))
        ]
    else:
        candidates = [
            list(zip(queries, chosen, strict=True)) for chosen in itertools.permutations(targets, len(queries))
        ]
    return set(min(candidates, key=lambda pairs: sum(cost[pair] for pair in pairs)))


def slow_loss(logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]], activation: str) -> Tensor:
    total = torch.zeros(())
    count = max(1, sum(len(target["labels"]) for target in targets))
    for layer in range(len(logits)):
        weighted, weights = torch.zeros(()), 0.0
        for image, target in enumerate(targets):
            pairs = dict(slow_match(logits[layer, image].detach(), boxes[layer, image].detach(), target, activation))
            for query in range(logits.shape[2]):
                row = logits[layer, image, query]
                label = int(target["labels"][pairs[query]]) if query in pairs else None
                if activation == "softmax":
                    weight = 0.1 if label is None else 1.0
                    weighted = weighted - weight * row.log_softmax(-1)[-1 if label is None else label]
                    weights += weight
                else:
                    for index, logit in enumerate(row):
                        p = torch.sigmoid(logit)
                        if index == label:
                            weighted = weighted - 0.25 * (1 - p) ** 2 * torch.log(p)
                        else:
                            weighted = weighted - 0.75 * p**2 * torch.log(1 - p)
                if label is not None:
                    box, wanted = boxes[layer, image, query], target["boxes"][pairs[query]]
                    total = total + 5 * (box - wanted).abs().sum() / count + 2 * (1 - slow_giou(box, wanted)) / count
        total = total + weighted / (weights if activation == "softmax" else count)
    return total


def example(
    activation: str, seed: int, counts: tuple[int, ...] = COUNTS
) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    torch.manual_seed(seed)
    logits = 2 * torch.randn(LAYERS, len(counts), QUERIES, CLASSES + (activation == "softmax"))
    boxes = torch.cat(
        [torch.rand(LAYERS, len(counts), QUERIES, 2), 0.05 + 0.5 * torch.rand(LAYERS, len(counts), QUERIES, 2)], -1
    )
    targets = [
        {
            "labels": torch.randint(0, CLASSES, (n,)),
            "boxes": torch.cat([torch.rand(n, 2), 0.05 + 0.5 * torch.rand(n, 2)], -1),
        }
        for n in counts
    ]
    return logits, boxes, targets


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("counts", [COUNTS, (7, 1)])
def test_matching_is_the_cheapest_of_all_assignments(activation, seed, counts):
    logits, boxes, targets = example(activation, seed, counts)
    matches = match_layers(logits, boxes, targets, CRITERIA[activation])
    for layer in range(LAYERS):
        for image, target in enumerate(targets):
            query, wanted = matches[layer][image]
            assert set(zip(query.tolist(), wanted.tolist(), strict=True)) == slow_match(
                logits[layer, image], boxes[layer, image], target, activation
            )
            assert wanted.tolist() == sorted(wanted.tolist())
            assert len(query) == min(QUERIES, len(target["labels"]))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("counts", [COUNTS, (0, 0), (7, 1)])
def test_loss_and_gradient_equal_a_slow_loop(activation, counts):
    logits, boxes, targets = example(activation, 11, counts)
    logits.requires_grad_()
    boxes.requires_grad_()
    loss = set_loss(
        logits, boxes, targets, match_layers(logits, boxes, targets, CRITERIA[activation]), CRITERIA[activation]
    )
    expected = slow_loss(logits, boxes, targets, activation)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    if sum(counts):
        got, wanted = torch.autograd.grad(loss, (logits, boxes)), torch.autograd.grad(expected, (logits, boxes))
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def backbone() -> ResNetConfig:
    return ResNetConfig(hidden_sizes=[8], depths=[1], out_features=["stage1"])


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_loss_equals_the_librarys_on_the_same_outputs(activation):
    logits, boxes, targets = example(activation, 3)
    shape = {"use_timm_backbone": False, "backbone_config": backbone(), "num_labels": CLASSES, "decoder_layers": LAYERS}
    if activation == "softmax":
        config, reference = DetrConfig(**shape, auxiliary_loss=True), ForObjectDetectionLoss
    else:
        config, reference = ConditionalDetrConfig(**shape, auxiliary_loss=True), DeformableDetrForObjectDetectionLoss
    labels = [{"class_labels": target["labels"], "boxes": target["boxes"]} for target in targets]
    expected, _, _ = reference(logits[-1], labels, "cpu", boxes[-1], config, logits, boxes)
    loss = set_loss(
        logits, boxes, targets, match_layers(logits, boxes, targets, CRITERIA[activation]), CRITERIA[activation]
    )
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_generalized_iou_of_known_boxes():
    box = torch.tensor([0.25, 0.25, 0.5, 0.5])
    assert generalized_iou(box, box) == pytest.approx(1)
    # The unit square's opposite quarters: no overlap, half of the hull empty.
    assert generalized_iou(box, torch.tensor([0.75, 0.75, 0.5, 0.5])) == pytest.approx(-0.5)
    # One inside the other: the hull is the larger one.
    assert generalized_iou(box, torch.tensor([0.25, 0.25, 0.25, 0.5])) == pytest.approx(0.5)


def test_a_diverged_detector_gives_a_loss_that_says_so():
    logits, boxes, targets = example("softmax", 0)
    logits[0] = float("nan")
    loss = set_loss(logits, boxes, targets, match_layers(logits, boxes, targets, SOFTMAX), SOFTMAX)
    assert torch.isnan(loss)


@pytest.mark.parametrize(("rows", "columns"), [(0, 3), (1, 1), (1, 5), (3, 3), (3, 16), (5, 6), (8, 40)])
@pytest.mark.parametrize("levels", [None, 3])
def test_a_device_assigns_as_scipy_does(rows, columns, levels):
    """With few levels many assignments cost the same: then only the cost is one."""
    cost = torch.rand(60, rows, columns, generator=torch.Generator().manual_seed(rows)).double()
    cost = cost * 7 - 3 if levels is None else (cost * levels).floor()
    found = assign(cost)
    assert found.shape == (60, rows)
    for each, taken in zip(cost.numpy(), found.numpy(), strict=True):
        assert len(set(taken.tolist())) == rows
        target, query = linear_sum_assignment(each)
        assert each[np.arange(rows), taken].sum() == pytest.approx(each[target, query].sum(), abs=1e-9)
        assert levels or taken.tolist() == query.tolist()


def test_matched_on_the_device_or_not_is_the_same(monkeypatch):
    """What fills an image's targets up takes no query that a real one needs."""
    generator = torch.Generator().manual_seed(3)
    logits, boxes = torch.randn(3, 4, 6, 3, generator=generator), torch.rand(3, 4, 6, 4, generator=generator) / 2 + 0.2
    targets = [
        {"labels": torch.zeros(n, dtype=torch.long), "boxes": torch.rand(n, 4, generator=generator) / 2 + 0.2}
        for n in (0, 4, 1, 2)
    ]
    wanted = match_layers(logits, boxes, targets, SOFTMAX)
    monkeypatch.setattr("faap.detectors.set_loss._solve_here", _solve_there)
    found = match_layers(logits, boxes, targets, SOFTMAX)
    assert torch.equal(found.queries, wanted.queries)
    assert [[len(query) for query, _ in layer] for layer in found] == [[0, 4, 1, 2]] * 3


def test_matches_are_read_back_as_they_were_given():
    pairs = [[(torch.tensor([4, 0]), torch.tensor([0, 2])), (torch.tensor([], dtype=torch.long),) * 2]]
    targets = Targets.of([{"labels": torch.zeros(n, dtype=torch.long), "boxes": torch.rand(n, 4)} for n in (3, 0)])
    matches = Matches.of(pairs, targets)
    assert matches.queries.tolist() == [[[4, -1, 0], [-1, -1, -1]]]
    for (query, target), (wanted, its) in zip(matches[0], pairs[0], strict=True):
        assert query.tolist() == wanted.tolist()
        assert target.tolist() == its.tolist()
