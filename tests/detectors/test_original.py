import argparse
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import faap
from faap.detectors import DetectorOutput
from faap.detectors.original import load_original
from faap.errors import FaapError

_spec = importlib.util.spec_from_file_location("original_detr", Path(__file__).with_name("original_detr.py"))
assert _spec is not None
_module = importlib.util.module_from_spec(_spec)
assert _spec.loader is not None
_spec.loader.exec_module(_module)
OriginalDetr = _module.OriginalDetr


def make(**options: Any) -> Any:
    torch.manual_seed(0)
    model = OriginalDetr(**options).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
            if isinstance(module, torch.nn.MultiheadAttention):
                module.in_proj_weight.mul_(2)
                module.in_proj_bias.normal_(0, 0.3)
                module.out_proj.bias.normal_(0, 0.3)
        model.query_embed.weight.normal_(0, 2)
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "detr-tiny.pth"
    torch.save({"model": make().state_dict()}, path)
    return path


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "detr-r50.pth"),
        ({"dc5": True}, "detr-r50-dc5-f0fb7ef5.pth"),
        ({"depths": (1, 1, 3, 1), "layers": 1, "queries": 5, "classes": 3}, "other.pth"),
    ],
)
def test_equals_the_original_network(
    options: dict[str, Any], name: str, batch: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    original = make(**options)
    torch.save({"model": original.state_dict()}, tmp_path / name)
    detector = faap.load_detector(tmp_path / name)
    pixels, mask = batch
    inputs = [pixels.clone().requires_grad_() for _ in range(2)]
    out = detector(inputs[0], mask)
    logits, boxes, features = original(inputs[1], mask)
    classes = options.get("classes", 91)
    assert out.logits.shape == (2, options.get("queries", 7), classes + 1)
    torch.testing.assert_close(out.features, features, atol=1e-4, rtol=1e-4)
    mine = [*out.aux, (out.logits, out.boxes)]
    assert len(mine) == len(logits) == options.get("layers", 2) + 1
    for (layer_logits, layer_boxes), wanted_logits, wanted_boxes in zip(mine, logits, boxes, strict=True):
        torch.testing.assert_close(layer_logits, wanted_logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(layer_boxes, wanted_boxes, atol=1e-4, rtol=1e-4)
    # the whole loss is the sum of the layers' own, each matched by itself
    targets = [
        {"labels": torch.tensor([1, 2]), "boxes": torch.tensor([[0.3, 0.4, 0.2, 0.5], [0.7, 0.5, 0.3, 0.3]])},
        {"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.8]])},
    ]
    loss = detector.loss(out, targets)
    layers = [DetectorOutput(*layer, features) for layer in zip(logits, boxes, strict=True)]
    expected = torch.stack([detector.loss(layer, targets) for layer in layers]).sum()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)
    loss.backward()
    expected.backward()
    first, second = (x.grad for x in inputs)
    assert first is not None
    assert second is not None
    assert (first - second).norm() <= 1e-4 * second.norm()


def test_what_tensors_cannot_tell_comes_from_the_arguments(
    batch: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    original = make(heads=4, dc5=True)
    arguments = argparse.Namespace(nheads=4, dilation=True, lr=1e-4)
    torch.save({"model": original.state_dict(), "args": arguments, "epoch": 3}, tmp_path / "checkpoint.pth")
    out = load_original(tmp_path / "checkpoint.pth")(*batch)
    torch.testing.assert_close(out.logits, original(*batch)[0][-1], atol=1e-4, rtol=1e-4)


def test_classes_are_cocos(saved: Path) -> None:
    detector = load_original(saved)
    assert detector.labels[1] == "person"
    assert detector.labels[90] == "toothbrush"
    assert detector.label_map({7: "person", 3: "Toaster"}) == {7: 1, 3: 80}
    assert detector.activation == "softmax"
    assert (detector.preprocessing.shortest_edge, detector.preprocessing.longest_edge) == (800, 1333)


def test_classes_are_named_by_a_file_beside_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "mine.v2.pth"
    torch.save({"model": make(classes=3).state_dict()}, path)
    assert load_original(path).labels == {0: "0", 1: "1", 2: "2"}
    with pytest.raises(FaapError, match=r"\(0, 1, 2\).*in a file NAME.classes.txt beside it, a name a line"):
        load_original(path).label_map({7: "person"})
    (tmp_path / "mine.v2.classes.txt").write_text("N/A\n person \nNähmaschine\n", encoding="utf-8")
    detector = load_original(path)
    assert detector.labels == {0: "N/A", 1: "person", 2: "Nähmaschine"}
    assert detector.label_map({7: "person"}) == {7: 1}
    (tmp_path / "mine.v2.classes.txt").write_text("person\n")
    with pytest.raises(FaapError, match=r"mine.v2.classes.txt: names 1 classes, but the checkpoint .* has 3"):
        load_original(path)


class Harmful:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def test_what_is_no_detr_is_refused(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = torch.load(saved, weights_only=True)["model"]

    def refused(content: Any, said: str) -> None:
        torch.save(content, tmp_path / "bad.pth")
        with pytest.raises(FaapError, match=said) as caught:
            load_original(tmp_path / "bad.pth")
        assert str(tmp_path / "bad.pth") in str(caught.value)

    refused({"weights": good}, "no entry 'model' of tensors.: weights: is")
    refused({"model": {**good, "extra.weight": torch.zeros(1)}}, "it has a tensor extra.weight")
    refused(
        {"model": {k: v for k, v in good.items() if k != "class_embed.bias"}}, "class_labels_classifier.bias .* missing"
    )
    refused({"model": {k: v for k, v in good.items() if k != "query_embed.weight"}}, "missing query_embed.weight")
    refused(
        {"model": {**good, "class_embed.bias": torch.zeros(5)}}, "class_labels_classifier.bias .* of the wrong shape"
    )
    whole = {f"detr.{k}": v for k, v in good.items()}
    refused({"model": whole | {"mask_head.lay1.weight": torch.zeros(1)}}, "DETR for segmentation")
    refused({"model": {**good, "transformer.encoder.norm.weight": torch.ones(32)}}, "pre_norm")
    refused({"model": good, "hook": Harmful()}, "holds more than tensors")
    assert "run" not in capsys.readouterr().out
    (tmp_path / "cut.pth").write_bytes(saved.read_bytes()[:5000])
    with pytest.raises(FaapError, match="truncated"):
        load_original(tmp_path / "cut.pth")
