"""That a detector never changes, and what it reports."""

import copy
import hashlib

import pytest
import torch
from torch import nn

from faap.detectors.base import DetectorOutput
from faap.errors import FaapError

TARGETS = [
    {"labels": torch.tensor([0, 0]), "boxes": torch.tensor([[0.3, 0.4, 0.2, 0.5], [0.7, 0.6, 0.3, 0.3]])},
    {"labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.8]])},
]


def test_a_parent_module_never_changes_its_mode(detector):
    parent = nn.ModuleDict({"detector": detector, "other": nn.Dropout()})
    for switch in (parent.train, parent.eval, lambda: detector.train(True)):
        switch()
        assert not any(module.training for module in detector.modules())
    parent.train()
    assert parent["other"].training


def test_outputs_repeat_while_a_parent_trains(detector, batch):
    parent = nn.ModuleList([detector]).train()
    first, second = parent[0](*batch), parent[0](*batch)
    assert torch.equal(first.logits, second.logits)


def test_gradient_reaches_the_pixels_and_nothing_else(detector, batch):
    pixels, mask = batch[0].clone().requires_grad_(), batch[1]
    detector.loss(detector(pixels, mask), TARGETS).backward()
    assert pixels.grad.abs().sum() > 0
    assert torch.isfinite(pixels.grad).all()
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in detector.parameters())


def test_known_matches_give_the_same_loss(detector, batch):
    out = detector(*batch)
    matches = detector.match_all_layers(out, TARGETS)
    assert len(matches) == 1 + len(out.aux)
    assert torch.equal(detector.loss(out, TARGETS), detector.loss(out, TARGETS, matches))


def test_every_layer_counts_once_in_the_loss(detector, batch):
    out = detector(*batch)
    alone = [
        detector.loss(DetectorOutput(logits, boxes, out.features), TARGETS)
        for logits, boxes in [*out.aux, (out.logits, out.boxes)]
    ]
    assert torch.stack(alone).sum() == pytest.approx(detector.loss(out, TARGETS).item(), rel=1e-5)


def test_matched_scores_are_the_label_probability_at_the_matched_query(detector):
    width = 2 + (detector.activation == "softmax")
    torch.manual_seed(0)
    logits = torch.randn(2, 4, width, requires_grad=True)
    boxes = torch.full((2, 4, 4), 0.9)
    # Put the right box at known queries: the box cost then decides.
    boxes[0, 2], boxes[0, 1], boxes[1, 3] = TARGETS[0]["boxes"][0], TARGETS[0]["boxes"][1], TARGETS[1]["boxes"][0]
    targets = [{**TARGETS[0], "labels": torch.tensor([1, 0])}, TARGETS[1]]
    out = DetectorOutput(logits, boxes, torch.zeros(2, 4, 8))
    scores = detector.matched_scores(out, targets, detector.match_all_layers(out, targets))
    expected = logits.softmax(-1) if detector.activation == "softmax" else logits.sigmoid()
    assert [len(score) for score in scores] == [2, 1]
    torch.testing.assert_close(
        torch.cat(scores), torch.stack([expected[0, 2, 1], expected[0, 1, 0], expected[1, 3, 0]])
    )
    torch.cat(scores).sum().backward()
    touched = logits.grad.abs().sum(-1) > 0
    assert touched.tolist() == [[False, True, True, False], [False, False, False, True]]


def test_detections_are_pixels_of_the_original_image(tiny, wrap):
    detector = wrap(tiny("detr"))
    logits = torch.tensor([[[0.0, 2.0, 1.0], [3.0, 0.0, 9.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.25, 0.75, 0.5, 0.5]]])
    (found,) = detector.detections(DetectorOutput(logits, boxes, torch.zeros(1, 2, 4)), torch.tensor([[100, 200]]))
    assert found.labels.tolist() == [1, 0]
    expected = [logits[0, 0].exp()[1] / logits[0, 0].exp().sum(), logits[0, 1].exp()[0] / logits[0, 1].exp().sum()]
    torch.testing.assert_close(found.scores, torch.stack(expected))
    torch.testing.assert_close(found.boxes, torch.tensor([[80.0, 30, 40, 40], [0, 50, 100, 50]]))


def test_detections_are_the_best_of_each_query_or_of_all_classes(detector, batch):
    out = detector(*batch)
    out.logits = torch.randn(out.logits.shape, generator=torch.Generator().manual_seed(0))
    found = detector.detections(out, torch.tensor([[480, 640], [370, 450]]))
    softmax = detector.activation == "softmax"
    scores = out.logits.softmax(-1)[..., :-1] if softmax else out.logits.sigmoid()
    for image, (height, width) in enumerate([(480, 640), (370, 450)]):
        everything = [
            (float(scores[image, query, label]), query, label)
            for query in range(scores.shape[1])
            for label in range(scores.shape[2])
        ]
        if softmax:
            wanted = [max(entry for entry in everything if entry[1] == query) for query in range(scores.shape[1])]
        else:
            wanted = sorted(everything, reverse=True)[: scores.shape[1]]
            assert len({query for _, query, _ in wanted}) < len(wanted), "some query should be of both classes"
        assert len(found[image].scores) == detector.num_queries == len(wanted)
        assert found[image].scores.tolist() == [score for score, _, _ in wanted]
        assert found[image].labels.tolist() == [label for _, _, label in wanted]
        for box, (_, query, _) in zip(found[image].boxes, wanted, strict=True):
            cx, cy, w, h = out.boxes[image, query].tolist()
            expected = torch.tensor([(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height])
            torch.testing.assert_close(box, expected, rtol=1e-4, atol=1e-3)


def test_labels_leave_the_no_object_class_out(tiny, wrap):
    assert wrap(tiny("conditional_softmax")).labels == {0: "person"}
    assert wrap(tiny("detr")).labels == {0: "bicycle", 1: "Person"}


def test_labels_map_by_name(tiny, wrap):
    detector = wrap(tiny("detr"))
    assert detector.label_map({7: "person", 3: "zebra"}) == {7: 1}
    with pytest.raises(FaapError, match=r"zebra.*tiny.*Person, bicycle"):
        detector.label_map({3: "zebra"})
    with pytest.raises(FaapError, match=r"rename the categories .*config.json \(id2label\)"):
        detector.label_map({3: "zebra"})


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({0: "person", 1: "bicycle", 2: "person"}, "0 'person', 2 'person'"),
        ({0: "Person", 1: "person"}, "0 'Person', 1 'person'"),
        ({3: "person ", 5: "PERSON"}, "3 'person ', 5 'PERSON'"),
    ],
)
def test_a_category_that_several_classes_can_be_is_refused(labels, said, tiny, wrap):
    detector = wrap(tiny("detr"))
    detector.labels = labels
    with pytest.raises(FaapError, match=rf"'person' can be several classes of the detector tiny: {said}; rename"):
        detector.label_map({1: "person"})


def test_unused_classes_may_share_a_name_and_how_a_name_is_written_does_not_count(tiny, wrap):
    detector = wrap(tiny("detr"))
    detector.labels = {0: "N/A", 1: " traffic  light", 2: "N/A", 5: "person", 6: "v\u00e9lo"}
    assert detector.label_map({8: "Traffic light", 9: "person ", 4: "ve\u0301lo"}) == {8: 1, 9: 5, 4: 6}


def test_sha256_sees_every_tensor_and_only_tensors(detector):
    before = detector.tensors_sha256()
    assert before == copy.deepcopy(detector).to(memory_format=torch.channels_last).tensors_sha256()
    entries = {**dict(detector.model.named_parameters()), **dict(detector.model.named_buffers())}
    content = b"".join(
        f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode() + tensor.detach().contiguous().numpy().tobytes()
        for name, tensor in sorted(entries.items())
    )
    assert before == hashlib.sha256(content).hexdigest()
    for tensor in (next(detector.model.parameters()), next(detector.model.buffers())):
        kept = tensor.flatten()[0].item()
        tensor.data.flatten()[0] += 1e-3
        assert detector.tensors_sha256() != before
        tensor.data.flatten()[0] = kept
    assert detector.tensors_sha256() == before


def test_using_it_changes_nothing(detector, batch):
    before = detector.tensors_sha256()
    pixels = batch[0].clone().requires_grad_()
    detector.loss(detector(pixels, batch[1]), TARGETS).backward()
    assert detector.tensors_sha256() == before
