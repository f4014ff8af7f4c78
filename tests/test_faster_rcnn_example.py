"""The example of a detector of one's own, examples/faster_rcnn.py; it runs where torchvision is installed."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

import faap
from faap.data import Preprocessing

torchvision = pytest.importorskip("torchvision")

PLACE = Path(__file__).parents[1] / "examples" / "faster_rcnn.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("faster_rcnn", PLACE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Backbone(torch.nn.Sequential):
    """Gives its feature maps by name, as torchvision's own backbones do."""

    out_channels = 8

    def forward(self, pixels):
        return {"0": super().forward(pixels)}


@pytest.fixture(scope="module")
def model():
    """A small random Faster R-CNN of one class that keeps images at their size."""
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import TwoMLPHead

    torch.manual_seed(0)
    backbone = Backbone(
        torch.nn.Conv2d(3, 8, 3, 4, 1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, 4, 1)
    )
    model = FasterRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(((16, 32, 64),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=torchvision.ops.MultiScaleRoIAlign(["0"], output_size=3, sampling_ratio=2),
        box_head=TwoMLPHead(8 * 9, 24),
        box_predictor=torchvision.models.detection.faster_rcnn.FastRCNNPredictor(24, 2),
        min_size=64,
        max_size=256,
        rpn_post_nms_top_n_test=20,
        box_score_thresh=0.2,
    )
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                module.weight.normal_(0, 1 / module.weight[0].numel() ** 0.5)
        model.roi_heads.box_predictor.cls_score.weight.mul_(3)
    return model.eval()


@pytest.fixture(scope="module")
def detector(example, model):
    return example.FasterRcnnDetector(model, ["person"], queries=20, preprocessing=Preprocessing(None, None))


def test_its_detections_are_torchvisions(detector, model):
    sizes = [(64, 100), (64, 80)]
    images = [torch.rand(3, *size, generator=torch.Generator().manual_seed(i)) for i, size in enumerate(sizes)]
    own = model([image.clone() for image in images])
    mean, std = (torch.tensor(values)[:, None, None] for values in (faap.data.MEAN, faap.data.STD))
    pixels, mask = torch.zeros(2, 3, 64, 100), torch.zeros(2, 64, 100, dtype=torch.bool)
    for i, (image, (height, width)) in enumerate(zip(images, sizes, strict=True)):
        pixels[i, :, :height, :width] = (image - mean) / std
        mask[i, :height, :width] = True
    out = detector(pixels, mask)
    assert out.logits.shape == (2, 20, 2)
    assert out.features.shape == (2, 20, 24)
    for mine, theirs in zip(detector.detections(out, torch.tensor(sizes)), own, strict=True):
        assert len(theirs["scores"]) > 2
        torch.testing.assert_close(mine.scores, theirs["scores"])
        corners = torch.cat([mine.boxes[:, :2], mine.boxes[:, :2] + mine.boxes[:, 2:]], 1)
        torch.testing.assert_close(corners, theirs["boxes"], rtol=1e-4, atol=1e-3)
        assert (mine.labels == 0).all()


def test_its_loss_reaches_the_pixels_and_it_stays_frozen(detector):
    before = detector.tensors_sha256()
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)).requires_grad_()
    out = detector(pixels)
    target = {"labels": torch.tensor([0]), "boxes": out.boxes[0, :1].detach() * 1.05}
    targets = [target, {"labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}]
    detector.loss(out, targets).backward()
    assert torch.isfinite(pixels.grad).all()
    assert (pixels.grad.abs().amax((1, 2, 3)) > 0).all()
    assert len(detector.matched_scores(out, targets)[0]) == 1
    torch.nn.Sequential(detector).train()
    detector(pixels)
    assert detector.tensors_sha256() == before


def test_missing_proposals_are_sure_to_be_nothing(detector):
    logits, boxes, states = detector._fill(torch.zeros(3, 2), torch.rand(3, 4), torch.ones(3, 24), (64, 64))
    assert (len(logits), len(boxes), len(states)) == (20, 20, 20)
    assert (detector.class_probabilities(logits)[3:] < 1e-30).all()


def test_it_trains_from_the_command_lines_name(detector, tiny_promenade, tmp_path, monkeypatch):
    import sys
    import types

    module = types.ModuleType("my_detector")
    module.build = lambda: detector
    monkeypatch.setitem(sys.modules, "my_detector", module)
    recipe = faap.load_recipe(
        "infonce_4th",
        dataset_root=str(tiny_promenade),
        detr_checkpoint="my_detector:build",
        epochs=1,
        batch_size=4,
        images_per_epoch=8,
        num_workers=0,
        output_dir=str(tmp_path / "run"),
    )
    run = faap.train(recipe, console=Console(quiet=True))
    assert run.metrics["perturbation"]["linf_pixels"] > 0
    row = json.loads((tmp_path / "run" / "train_log.jsonl").read_text().splitlines()[0])
    assert row["train"]["gradient_norm"] > 0
