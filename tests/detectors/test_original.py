import argparse
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import faap
from faap.detectors import DetectorOutput, original
from faap.detectors.original import load_original
from faap.errors import FaapError
from mutants import PLAIN, TENSORS, mutants, outcome

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
    with pytest.raises(FaapError, match=r"\(0, 1, 2\).*in NAME.classes.txt beside it, one a line"):
        load_original(path).label_map({7: "person"})
    (tmp_path / "mine.v2.classes.txt").write_text("N/A\n person \nNähmaschine\n", encoding="utf-8")
    detector = load_original(path)
    assert detector.labels == {0: "N/A", 1: "person", 2: "Nähmaschine"}
    assert detector.label_map({7: "person"}) == {7: 1}
    (tmp_path / "mine.v2.classes.txt").write_text("person\n")
    with pytest.raises(FaapError, match=r"mine.v2.classes.txt: names 1 classes, but the checkpoint .* has 3"):
        load_original(path)


@pytest.mark.parametrize(
    ("encoding", "start"),
    [("utf-8", ""), ("utf-8", "\ufeff"), ("utf-16", ""), ("utf-16-le", ""), ("utf-16-be", "\ufeff"), ("utf-32", "")],
)
def test_names_of_classes_may_be_in_any_unicode_encoding(encoding: str, start: str, tmp_path: Path) -> None:
    torch.save({"model": make(classes=3).state_dict()}, tmp_path / "mine.pth")
    # with lines at the end that name nothing
    (tmp_path / "mine.classes.txt").write_bytes(f"{start}person\r\nNähmaschine\r\n12\r\n\r\n  \n".encode(encoding))
    assert load_original(tmp_path / "mine.pth").labels == {0: "person", 1: "Nähmaschine", 2: "12"}


def test_names_of_classes_in_another_encoding_or_left_at_git_lfs_are_refused(tmp_path: Path) -> None:
    torch.save({"model": make(classes=3).state_dict()}, tmp_path / "mine.pth")
    for content, said in (("Nähmaschine\na\nb".encode("latin-1"), "no text in UTF-8"), (POINTER, "git lfs pull")):
        (tmp_path / "mine.classes.txt").write_bytes(content)
        with pytest.raises(FaapError, match=rf"mine.classes.txt: is .*{said}"):
            load_original(tmp_path / "mine.pth")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f\nsize 166\n"


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module.model.", "detr."])
@pytest.mark.parametrize(
    "place",
    ["model", "state_dict", "model_state_dict", "ema", "ema.module", "model_ema.state_dict", "state_dict_ema", ""],
)
def test_wrapped_and_averaged_weights_are_found(prefix: str, place: str, tmp_path: Path, recwarn: Any) -> None:
    original = make(classes=3)
    state: Any = {prefix + name: value for name, value in original.state_dict().items()}
    content: Any = {"epoch": 3, "optimizer": {"state": {}}}
    for entry in reversed(place.split(".") if place else ()):
        state = {entry: state}
    torch.save(content | state if place else state, tmp_path / "wrapped.pth")
    detector = load_original(tmp_path / "wrapped.pth")
    torch.save({"model": original.state_dict()}, tmp_path / "plain.pth")
    assert detector.tensors_sha256() == load_original(tmp_path / "plain.pth").tensors_sha256()
    said = [str(warning.message) for warning in recwarn if "wrapped.pth" in str(warning.message)]
    assert said == ([] if place == "model" else [said[0]])
    assert place == "model" or (place or "the file itself") in said[0]


@pytest.mark.parametrize(
    ("prefix", "beside"),
    [
        ("module.", "n_averaged"),
        ("module.module.", "module.n_averaged"),
        ("model.", "criterion.empty_weight"),
        ("module.model.", "module.model.criterion.empty_weight"),
    ],
)
def test_what_wrappers_keep_beside_the_model_is_left_aside(prefix: str, beside: str, tmp_path: Path) -> None:
    original = make(classes=3).state_dict()
    state = {prefix + name: value for name, value in original.items()}
    torch.save({"model": state | {beside: torch.tensor(5)}}, tmp_path / "wrapped.pth")
    torch.save({"model": original}, tmp_path / "plain.pth")
    wrapped, plain = (load_original(tmp_path / name) for name in ("wrapped.pth", "plain.pth"))
    assert wrapped.tensors_sha256() == plain.tensors_sha256()
    torch.save({"model": state | {prefix + "extra.weight": torch.ones(1)}}, tmp_path / "more.pth")
    with pytest.raises(FaapError, match=r"extra.weight \(1 in all\) not of this model"):
        load_original(tmp_path / "more.pth")


def test_the_models_own_weights_come_before_averaged_ones(tmp_path: Path) -> None:
    state = make(classes=3).state_dict()
    other = {name: value + 1 for name, value in state.items()}
    torch.save({"model_ema": other, "model": state}, tmp_path / "both.pth")
    torch.save({"model": state}, tmp_path / "plain.pth")
    both, plain = (load_original(tmp_path / name) for name in ("both.pth", "plain.pth"))
    assert both.tensors_sha256() == plain.tensors_sha256()


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (
            ["transformer.level_embed", "transformer.encoder.layers.0.self_attn.sampling_offsets.weight"],
            "Deformable DETR",
        ),
        (
            ["transformer.decoder.layers.0.ca_qcontent_proj.weight", "query_embed.weight"],
            "Conditional DETR or DAB-DETR",
        ),
        (["refpoint_embed.weight", "transformer.decoder.ref_point_head.layers.0.weight"], "DAB-DETR"),
        (["label_enc.weight", "transformer.level_embed"], "DINO or DN-DETR"),
        (["backbone.res_layers.0.blocks.0.branch2a.conv.weight", "decoder.enc_score_head.weight"], "RT-DETR"),
        (["decoder.pre_bbox_head.layers.0.weight", "decoder.enc_score_head.weight"], "D-FINE"),
        (["transformer.enc_out_class_embed.0.weight", "refpoint_embed.weight"], "LW-DETR or RF-DETR"),
        (["backbone.det_token"], "YOLOS"),
        (["model.0.conv.weight", "model.22.dfl.conv.weight"], "YOLO"),
        (["0.conv.weight"], "YOLO"),
        (["backbone.body.conv1.weight", "rpn.head.conv.0.0.weight", "roi_heads.box_head.fc6.weight"], "torchvision"),
        (["head.classification_head.cls_logits.weight"], "torchvision"),
        (["backbone.bottom_up.stem.conv1.weight"], "Detectron2"),
        (["bbox_head.cls_branches.0.weight"], "MMDetection"),
        (["class_labels_classifier.weight"], "a DETR in the names of transformers"),
        (["stem.weight", "down8.conv.weight"], "faap's generator"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_another_familys_weights_are_named(names: list[str], family: str, prefix: str, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"model": {prefix + name: torch.zeros(4) for name in names}}, path)
    with pytest.raises(
        FaapError, match=rf"other.pth: is a checkpoint of {family}[:,].*it has a tensor .*save_pretrained"
    ):
        load_original(path)


def test_a_pickled_yolo_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("ultralytics")
    module.Model = type("Model", (), {"__module__": "ultralytics"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ultralytics", module)
    torch.save({"model": module.Model()}, tmp_path / "yolo.pt")
    with pytest.raises(FaapError, match=r"yolo.pt: holds more than tensors .* It is a checkpoint of YOLO"):
        load_original(tmp_path / "yolo.pt")


def test_whatever_a_checkpoint_holds_it_loads_or_is_refused_in_words(tmp_path: Path) -> None:
    state = dict(make(classes=3, layers=1, depths=(1, 1, 1, 1)).state_dict())
    right = {"model": state, "epoch": 3, "args": {"nheads": 8, "dilation": False, "lr": 1e-4}}
    outcomes = []
    for said, wrong in mutants(right, 40, seed=0, odd=PLAIN + TENSORS):
        torch.save(wrong, tmp_path / "mutant.pth")
        outcomes.append(outcome(lambda: load_original(tmp_path / "mutant.pth"), said))
    told = [text for text in outcomes if text is not None]
    assert 0 < len(told) < 40
    assert all(str(tmp_path) in text for text in told)


def test_a_dilated_detector_is_tried_as_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = make(classes=3, layers=1, depths=(1, 1, 1, 1)).state_dict()
    torch.save({"model": state, "args": {"dilation": True}}, tmp_path / "mine.pth")
    monkeypatch.setattr(original, "_dilate", lambda model: model.class_labels_classifier.weight.fill_(torch.inf))
    with pytest.raises(FaapError, match=r"mine\.pth: makes a detector whose outputs for a grey image are NaN"):
        load_original(tmp_path / "mine.pth")


class Harmful:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def test_what_is_no_checkpoint_is_said_without_what_the_library_advises(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>404</html>")
    with pytest.raises(FaapError, match=r"page\.pth: is no checkpoint, but something else under its name") as caught:
        load_original(tmp_path / "page.pth")
    assert "weights_only" not in str(caught.value)


def test_what_is_no_detr_is_refused(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = torch.load(saved, weights_only=True)["model"]

    def refused(content: Any, said: str) -> None:
        torch.save(content, tmp_path / "bad.pth")
        with pytest.raises(FaapError, match=said) as caught:
            load_original(tmp_path / "bad.pth")
        assert str(tmp_path / "bad.pth") in str(caught.value)

    refused({"weights": good}, "no entry 'model' of tensors.: weights: is")
    refused({"model": {**good, "extra.weight": torch.zeros(1)}}, r"extra.weight \(1 in all\) not of this model")
    refused(
        {"model": good | {"model.input_projection.bias": torch.zeros(32)}},
        "has model.input_projection.bias twice, once as model",
    )
    refused(
        {"model": {k: v for k, v in good.items() if k != "class_embed.bias"}}, "class_labels_classifier.bias .* missing"
    )
    refused(
        {"model": {k: v for k, v in good.items() if k != "query_embed.weight"}},
        "not a DETR that faap knows: it has no query_embed.weight of 2 dimensions",
    )
    refused({"model": good | {"query_embed.weight": torch.zeros(())}}, "no query_embed.weight of 2 dimensions")
    projection = "transformer.encoder.layers.0.self_attn.in_proj_weight"
    refused(
        {"model": good | {projection: torch.zeros(5, 32)}}, rf"{projection} is of shape \(5, 32\), which has no three"
    )
    refused(
        {"model": {**good, "class_embed.bias": torch.zeros(5)}}, "class_labels_classifier.bias .* of the wrong shape"
    )
    whole = {f"detr.{k}": v for k, v in good.items()}
    refused({"model": whole | {"mask_head.lay1.weight": torch.zeros(1)}}, "DETR for segmentation")
    refused({"model": {**good, "transformer.encoder.norm.weight": torch.ones(32)}}, "pre_norm")
    refused({"model": good, "hook": Harmful()}, "holds more than tensors")
    assert "run" not in capsys.readouterr().out
    refused(
        {"model": {**good, "class_embed.bias": torch.full((92,), torch.nan)}},
        "class_embed.bias is NaN or infinite in 92",
    )
    refused({"model": {**good, "input_proj.weight": torch.zeros(1).expand(10**12)}}, "file holds a part only")
    refused({"model": {**good, 3: torch.zeros(1)}}, "model: is 3; it should be text as a key")
    refused({"model": good | {"input_proj.bias": 3}}, "model: input_proj.bias: is 3; it should be a Tensor")
    refused({"model": good, "args": {"nheads": 5}}, "args: nheads: is 5; it should divide the width 32")
    refused({"model": good, "args": {"nheads": "8"}}, "args: nheads: is '8'")
    (tmp_path / "bad.pth").write_bytes(POINTER)
    with pytest.raises(FaapError, match="is a pointer of Git LFS"):
        load_original(tmp_path / "bad.pth")
    (tmp_path / "cut.pth").write_bytes(saved.read_bytes()[:5000])
    with pytest.raises(FaapError, match="truncated"):
        load_original(tmp_path / "cut.pth")
