"""Loading from disk, and that every decoder layer's output is the one that DETR defines."""

import copy
import dataclasses
import hashlib
import json
import shutil
import sys
import types

import pytest
import torch
from safetensors.torch import load_file, save_file

from faap.detectors import FAMILIES, load_detector
from faap.errors import FaapError


@pytest.fixture(scope="module")
def directory(tmp_path_factory, tiny, save):
    return save(tiny("detr"), tmp_path_factory.mktemp("detectors") / "tiny-detr")


@pytest.fixture
def broken(directory, tmp_path):
    """A copy of a detector directory, to be damaged."""
    return shutil.copytree(directory, tmp_path / "broken")


def test_last_layer_is_the_models_own_output(detector, batch):
    out = detector(*batch)
    own = detector.model(*batch)
    torch.testing.assert_close(out.logits, own.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.boxes, own.pred_boxes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.features, own.last_hidden_state, rtol=1e-5, atol=1e-5)


def test_each_earlier_layer_is_what_a_decoder_cut_there_gives(detector, batch):
    out = detector(*batch)
    assert len(out.aux) == 2
    for depth, (logits, boxes) in enumerate(out.aux, start=1):
        cut = copy.deepcopy(detector.model)
        cut.model.decoder.layers = cut.model.decoder.layers[:depth]
        own = cut(*batch)
        torch.testing.assert_close(logits, own.logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(boxes, own.pred_boxes, rtol=1e-5, atol=1e-5)
        assert (logits - out.logits).abs().max() > 1e-2


def test_no_mask_means_no_padding(detector, batch):
    pixels = batch[0]
    masked, plain = detector(pixels, torch.ones(2, 48, 64, dtype=torch.bool)), detector(pixels)
    assert torch.equal(masked.logits, plain.logits)
    assert torch.equal(masked.boxes, plain.boxes)


def test_the_mask_tells_padding_from_image(detector, batch):
    assert (detector(*batch).logits - detector(batch[0]).logits)[1].abs().max() > 1e-3


def test_a_directory_gives_back_its_model(kind, tiny, wrap, save, batch, tmp_path):
    model = tiny(kind)
    truth = wrap(copy.deepcopy(model))
    loaded = load_detector(save(model, tmp_path / "mine"))
    for value, expected in zip(
        (loaded(*batch).logits, loaded(*batch).boxes), (truth(*batch).logits, truth(*batch).boxes), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    assert (loaded.name, loaded.num_queries, loaded.activation) == ("mine", 6, truth.activation)
    assert loaded.labels == truth.labels
    weights = (tmp_path / "mine" / "model.safetensors").read_bytes()
    assert loaded.file_sha256 == hashlib.sha256(weights).hexdigest()
    assert loaded.tensors_sha256() == load_detector(tmp_path / "mine").tensors_sha256()
    assert loaded.activation == ("sigmoid" if kind == "conditional_sigmoid" else "softmax")


def test_promenade_names_the_shipped_detector(directory, monkeypatch):
    module = types.ModuleType("faap.promenade")
    module.detector_dir = {"biased": directory}.__getitem__
    monkeypatch.setitem(sys.modules, "faap.promenade", module)
    detector = load_detector("promenade", device="cpu")
    assert (detector.name, detector.tensors_sha256()) == ("promenade", load_detector(directory).tensors_sha256())


def test_half_precision_weights_become_float32(tiny, save, batch, tmp_path):
    detector = load_detector(save(tiny("conditional_softmax").half(), tmp_path / "half"))
    assert {parameter.dtype for parameter in detector.parameters()} == {torch.float32}
    assert torch.isfinite(detector(*batch).logits).all()


def test_a_config_with_auxiliary_loss_changes_nothing(directory, broken, batch):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "auxiliary_loss": True}))
    plain, auxiliary = load_detector(directory)(*batch), load_detector(broken)(*batch)
    assert torch.equal(plain.logits, auxiliary.logits)
    assert torch.equal(plain.aux[0][0], auxiliary.aux[0][0])


def test_loading_says_nothing(directory, capfd):
    load_detector(directory)
    assert capfd.readouterr() == ("", "")


def test_preprocessing_comes_from_the_directory(directory):
    preprocessing = load_detector(directory).preprocessing
    assert (preprocessing.shortest_edge, preprocessing.longest_edge) == (48, 80)
    assert (preprocessing.mean, preprocessing.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def edit_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(directory, change):
    path = directory / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "config.json.*No such file"),
        (lambda d: (d / "config.json").write_text("{"), "config.json.*not valid JSON"),
        (lambda d: edit_config(d, model_type="owlvit"), "'owlvit'.*conditional_detr, d_fine"),
        (lambda d: edit_config(d, d_model="wide"), "cannot be loaded as detr"),
        (lambda d: (d / "model.safetensors").unlink(), "model.safetensors.*no such file"),
        (
            lambda d: (d / "model.safetensors").write_bytes(b"rubbish"),
            "safetensors: is not a complete safetensors file",
        ),
        (lambda d: (d / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
        (
            lambda d: edit_weights(d, lambda w: w.pop("class_labels_classifier.weight")),
            "class_labels_classifier.*missing",
        ),
        (lambda d: edit_weights(d, lambda w: w.update(extra=torch.zeros(2))), "extra.*not of this model"),
        (
            lambda d: edit_weights(d, lambda w: w.update({"class_labels_classifier.bias": torch.zeros(9)})),
            "class_labels_classifier.bias.*wrong shape",
        ),
        (
            lambda d: edit_weights(d, lambda w: w.pop(next(key for key in w if key.endswith("running_mean")))),
            "running_mean.*missing",
        ),
    ],
)
def test_errors_name_the_file_and_the_trouble(broken, damage, message):
    damage(broken)
    with pytest.raises(FaapError, match=message) as caught:
        load_detector(broken)
    assert str(broken) in str(caught.value)


def test_weights_in_several_files_are_one_detector(directory, tiny, batch, tmp_path):
    tiny("detr").save_pretrained(tmp_path, max_shard_size="50KB")
    shutil.copy(directory / "preprocessor_config.json", tmp_path)
    parts = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(parts) > 1
    loaded, whole = load_detector(tmp_path), load_detector(directory)
    assert loaded.tensors_sha256() == whole.tensors_sha256()
    assert loaded.file_sha256 == hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
    parts[-1].unlink()
    with pytest.raises(FaapError, match=rf"{parts[-1].name}: no such file"):
        load_detector(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(FaapError, match=r"index.json: has no entry .weight_map"):
        load_detector(tmp_path)


def test_a_family_that_transformers_lacks_is_named(broken, monkeypatch):
    monkeypatch.setitem(FAMILIES, "detr", dataclasses.replace(FAMILIES["detr"], model="DetrOfTomorrow"))
    with pytest.raises(FaapError, match=r"'detr', which transformers .* does not have; .*pip install -U transformers"):
        load_detector(broken)


def test_a_backbone_of_a_missing_package_says_what_to_install(broken):
    edit_config(broken, backbone_config={"model_type": "timm_backbone", "backbone": "resnet50"})
    with pytest.raises(FaapError, match="asks for a backbone of timm, which is not installed: pip install timm"):
        load_detector(broken)


def test_a_name_with_one_slash_is_a_model_of_the_hub(directory, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: asked.append((name, options)) or str(directory)
    )
    detector = load_detector("facebook/detr-resnet-50")
    assert (detector.name, detector.tensors_sha256()) == (
        "facebook/detr-resnet-50",
        load_detector(directory).tensors_sha256(),
    )
    ((name, options),) = asked
    assert name == "facebook/detr-resnet-50"
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= set(options["allow_patterns"])
    assert not any(pattern.endswith((".bin", ".pth", "*")) for pattern in options["allow_patterns"])
    for other in ("a/b/c", "runs/best.pth", "nowhere", str(directory / "deeper")):
        with pytest.raises(FaapError, match="does not exist; give 'promenade'"):
            load_detector(other)
    assert len(asked) == 1


def test_an_unreachable_hub_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FaapError, match="some/model is no file or directory here, and cannot be had from"):
        load_detector("some/model")


def test_a_path_wins_over_the_hub(directory, monkeypatch):
    monkeypatch.chdir(directory.parent.parent)
    assert load_detector(f"{directory.parent.name}/{directory.name}").name == directory.name


def test_a_function_of_ones_own_is_called(directory, monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text(
        f"import faap\ndef build():\n    return faap.load_detector({str(directory)!r})\nnumber = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert load_detector("mine:build").tensors_sha256() == load_detector(directory).tensors_sha256()
    assert sys.path == before
    for name, message in (
        ("mine:other", "mine:other: module 'mine' has no attribute 'other'; it should name a function"),
        ("yours:build", "yours:build: No module named 'yours'; it should name a function"),
        ("mine:number", "mine:number: is int; it should be a function .*FrozenDetector"),
    ):
        with pytest.raises(FaapError, match=message):
            load_detector(name)


def test_what_is_not_a_detector_says_what_would_be(tmp_path):
    with pytest.raises(FaapError, match=r"nowhere does not exist; give 'promenade', a directory"):
        load_detector(tmp_path / "nowhere")
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(FaapError, match=r"file.txt: cannot be read as a checkpoint"):
        load_detector(tmp_path / "file.txt")
