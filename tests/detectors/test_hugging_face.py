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
from mutants import mutants, outcome


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


POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 166\n"
)


def spoil_statistics(weights):
    weights[next(name for name in weights if name.endswith("running_var"))].fill_(-5)


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
        *(
            (
                lambda d, name=name: (d / name).write_text(POINTER),
                rf"{name}: is a pointer of Git LFS.*run: git lfs pull",
            )
            for name in ("config.json", "model.safetensors", "preprocessor_config.json")
        ),
        *(
            (
                lambda d, v=v: edit_weights(d, lambda w: w["bbox_predictor.layers.0.bias"][3:5].fill_(v)),
                "0.bias is NaN or",
            )
            for v in (float("nan"), float("inf"))
        ),
        (lambda d: edit_weights(d, spoil_statistics), "outputs for a grey image are NaN or infinite"),
        (lambda d: edit_config(d, decoder_layers=3e20), "decoder_layers: is 3e[+]20; it should be .* to 1000"),
        (lambda d: edit_config(d, encoder_layers=10**5), "encoder_layers: is 100000; it should be .* to 1000"),
        (lambda d: edit_config(d, num_queries=2**70), "num_queries: is .*; it should be .* to 1000000"),
        (lambda d: edit_config(d, num_queries=10**6), "it describes .* weights, and the files hold"),
        (lambda d: edit_config(d, d_model=10**5), "it describes .* weights, and the files hold"),
        (lambda d: edit_config(d, backbone_config={"depths": [10**6]}), "depths: is 1000000"),
        (lambda d: edit_config(d, class_cost="1"), "config.json: class_cost: is '1'; it should be a finite number"),
        (lambda d: edit_config(d, model_type=["detr"]), "config.json: model_type: is .* it should be text"),
        (
            lambda d: (d / "config.json").write_text('{"a":' * 900 + "1" + "}" * 900),
            "config.json: is no configuration of a detector: maximum recursion depth",
        ),
        (lambda d: edit_config(d, id2label={"person": 0}), "id2label: has 'person' as a key"),
        (lambda d: edit_config(d, id2label={"99999999999": "a"}), "id2label: has '99999999999' as a key"),
        (lambda d: edit_config(d, id2label=["a", "b"]), "id2label: is .* it should be a mapping"),
        (
            lambda d: edit_config(d, id2label={"0": None, "1": "a"}),
            "id2label: 0: is None; it should be text or a whole",
        ),
        (
            lambda d: edit_config(d, id2label={"0": "a"}),
            "of 1 classes, by config.json.*class_labels_classifier.*of the wrong shape",
        ),
        (
            lambda d: edit_config(d, id2label={"2": "a"}),
            "of 3 classes, by config.json.*class_labels_classifier.*of the wrong shape",
        ),
        (lambda d: edit_config(d, quantization_config={"bits": 4}), "quantised weights are not supported"),
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


@pytest.mark.parametrize("parts", [1, 3])
def test_weights_may_be_those_of_older_versions(broken, directory, parts):
    weights = load_file(broken / "model.safetensors")
    (broken / "model.safetensors").unlink()
    names = [f"pytorch_model-{part}-of-3.bin" for part in range(3)] if parts > 1 else ["pytorch_model.bin"]
    for number, name in enumerate(names):
        torch.save({key: weights[key] for key in list(weights)[number::parts]}, broken / name)
    if parts > 1:
        where = {key: names[position % parts] for position, key in enumerate(weights)}
        (broken / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    loaded = load_detector(broken)
    assert loaded.tensors_sha256() == load_detector(directory).tensors_sha256()
    content = b"".join((broken / name).read_bytes() for name in names)
    assert loaded.file_sha256 == hashlib.sha256(content).hexdigest()
    torch.save({"module": torch.nn.Linear(1, 1)}, broken / names[-1])
    with pytest.raises(FaapError, match=rf"{names[-1]}: holds more than tensors and plain values"):
        load_detector(broken)
    torch.save({"weights": weights}, broken / names[-1])
    with pytest.raises(FaapError, match=rf"{names[-1]}: weights: is .* it should be"):
        load_detector(broken)
    weights["bbox_predictor.layers.0.bias"][0] = float("nan")
    torch.save(weights, broken / names[-1])
    with pytest.raises(FaapError, match=rf"{names[-1]}: bbox_predictor.layers.0.bias is NaN"):
        load_detector(broken)
    (broken / names[-1]).unlink()
    with pytest.raises(FaapError, match=r": no such file; a detector's weights are in safetensors format"):
        load_detector(broken)


def test_safetensors_win_over_what_older_versions_wrote(broken, directory):
    (broken / "pytorch_model.bin").write_bytes(b"never read")
    assert load_detector(broken).file_sha256 == load_detector(directory).file_sha256


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


def test_older_weights_are_fetched_where_there_are_no_others(broken, directory, monkeypatch, tmp_path):
    torch.save(load_file(broken / "model.safetensors"), broken / "pytorch_model.bin")
    (broken / "model.safetensors").unlink()
    asked = []

    def fetch(name, allow_patterns):
        asked.append(allow_patterns)
        for file in broken.iterdir():
            if any(file.match(pattern) for pattern in allow_patterns):
                shutil.copy(file, tmp_path)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert load_detector("some/model").tensors_sha256() == load_detector(directory).tensors_sha256()
    assert [any(pattern.endswith(".bin") for pattern in patterns) for patterns in asked] == [False, True]


def test_an_unreachable_hub_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FaapError, match="some/model: is no file or directory here, and cannot be had from"):
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


def test_a_function_of_ones_own_may_import_what_stands_beside_it(directory, monkeypatch, tmp_path):
    (tmp_path / "beside.py").write_text(f"PLACE = {str(directory)!r}\n")
    (tmp_path / "later.py").write_text(
        "import sys\nimport faap\nsys.path.insert(0, '/elsewhere')\n"
        "def build():\n    import beside\n    return faap.load_detector(beside.PLACE)\n"
        "def broken():\n    import nowhere_at_all\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", before := list(sys.path))
    wanted = ["/elsewhere", *before]
    assert load_detector("later:build").tensors_sha256() == load_detector(directory).tensors_sha256()
    assert sys.path == wanted  # what the module did is left, and nothing of ours
    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):  # the function's own fault, where it is
        load_detector("later:broken")
    assert sys.path == wanted
    (tmp_path / "away.py").write_text(f"import sys\nsys.path.remove({str(tmp_path)!r})\nbuild = 3\n")
    with pytest.raises(FaapError, match="away:build: is int"):
        load_detector("away:build")


OWN = """
import torch
from faap.data import Preprocessing
from faap.detectors import DetectorOutput, FrozenDetector


class Mine(FrozenDetector):
    def forward(self, x, mask=None):
        logits, boxes, features = (torch.zeros(len(x), 5, width) for width in (3, 4, 8))
        return {gives}


def build():
    shape = {{"num_queries": 5, "feature_dim": 8, "preprocessing": Preprocessing(None, None), "file_sha256": ""}}
    return Mine(torch.nn.Identity(), name="own", activation={activation!r}, labels={labels!r}, **shape)
"""


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, None),
        ({"gives": "logits, boxes, features"}, r"gives a tuple; it should be a faap\.detectors\.DetectorOutput"),
        ({"gives": "DetectorOutput(logits, boxes, features.mean(1))"}, r"shapes .*\(1, 8\)\]; they should be"),
        (
            {"gives": "DetectorOutput(logits, boxes, boxes)"},
            r"\(1, Q, 4\) and \(1, Q, 8\), by its labels and feature_dim",
        ),
        ({"gives": "DetectorOutput(boxes, logits, features)"}, "logits, boxes and features have the shapes"),
        ({"gives": "DetectorOutput(logits[0], boxes, features)"}, "logits, boxes and features have the shapes"),
        ({"gives": "DetectorOutput(logits / 0, boxes, features)"}, "outputs for a grey image are NaN or infinite"),
        ({"labels": {0: "person", 3: "dog"}}, r"they should be \(1, Q, 4 or more\)"),
        ({"activation": "softmax"}, r"they should be \(1, Q, 4 or more\)"),
        ({"labels": ["person"]}, r"labels: is \['person'\]; it should be a mapping"),
    ],
)
def test_what_a_function_of_ones_own_gives_is_looked_at(changed, message, monkeypatch, tmp_path, request):
    given = {"gives": "DetectorOutput(logits, boxes, features)", "activation": "sigmoid", "labels": {2: "person"}}
    name = f"looked_at_{abs(hash(request.node.name))}"  # a module is imported once
    (tmp_path / f"{name}.py").write_text(OWN.format(**given | changed))
    monkeypatch.chdir(tmp_path)
    if message is None:
        assert load_detector(f"{name}:build").labels == {2: "person"}
    else:
        with pytest.raises(FaapError, match=rf"detector {name}:build: .*{message}"):
            load_detector(f"{name}:build")


def test_what_is_not_a_detector_says_what_would_be(tmp_path):
    with pytest.raises(FaapError, match=r"nowhere does not exist; give 'promenade', a directory"):
        load_detector(tmp_path / "nowhere")
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(FaapError, match=r"file.txt: cannot be read as a checkpoint"):
        load_detector(tmp_path / "file.txt")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_one_file_of_a_directory_asks_for_the_directory(name, directory):
    with pytest.raises(FaapError, match=rf"{name}: is one of a detector's files; give its folder, {directory}, "):
        load_detector(directory / name)


def test_names_of_classes_may_have_gaps_and_be_numbers(broken):
    edit_config(broken, id2label={"1": 7}, num_labels=9)
    assert load_detector(broken).labels == {0: "N/A", 1: "7"}


def test_a_category_of_two_classes_is_refused(broken):
    edit_config(broken, id2label={"0": "Person", "1": "person "})
    with pytest.raises(
        FaapError, match="'person' can be several classes of the detector broken: 0 'Person', 1 'person '"
    ):
        load_detector(broken).label_map({1: "person"})


def test_nothing_that_a_config_says_is_run_or_fetched(directory, broken, batch, monkeypatch, tmp_path):
    """Whatever names code, a kernel, a base model or a backbone from elsewhere is left alone, or refused."""
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    (broken / "evil.py").write_text("raise SystemExit('imported')")
    (broken / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model", "peft_type": "LORA"}')
    monkeypatch.syspath_prepend(tmp_path)
    asked = []
    refuse = lambda *call, **_: asked.append(call) or (_ for _ in ()).throw(OSError("network"))  # noqa: E731
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    plain = load_detector(directory)(*batch).logits
    backbone = json.loads((broken / "config.json").read_text())["backbone_config"]
    edit_config(
        broken,
        auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoBackbone": "evil/repo--evil.Model"},
        attn_implementation="evil/kernel",
        _attn_implementation="evil/kernel",
        _target_="evil.build",
        trust_remote_code=True,
        custom_pipelines={"detection": {"impl": "evil.Pipeline"}},
        backbone_config=backbone | {"auto_map": {"AutoBackbone": "evil/repo--evil.Model"}, "_target_": "evil.build"},
    )
    assert torch.equal(load_detector(broken)(*batch).logits, plain)
    for backbone in ("evil/repo", "hf-hub:evil/repo", "resnet50", "../evil"):
        for options in ({"use_timm_backbone": False}, {"backbone_kwargs": {"a": 1}}, {"use_pretrained_backbone": True}):
            edit_config(broken, backbone=backbone, backbone_config=None, **options)
            with pytest.raises(FaapError, match=r"config\.json"):
                load_detector(broken)
    edit_config(broken, backbone=None, backbone_config={"model_type": "timm_backbone", "backbone": "hf-hub:evil/repo"})
    with pytest.raises(FaapError, match="backbone: is 'hf-hub:evil/repo'"):
        load_detector(broken)
    assert asked == []
    assert "evil" not in sys.modules


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_whatever_a_file_holds_it_loads_or_is_refused_in_words(name, broken):
    right = json.loads((broken / name).read_text())
    if name != "config.json":
        right |= {"do_resize": True, "do_pad": True, "resample": 2, "pad_size": {"height": 80, "width": 80}}
        right |= {"do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255}
    outcomes = []
    for said, wrong in mutants(right, 40, seed=0):
        (broken / name).write_text(json.dumps(wrong))
        outcomes.append(outcome(lambda: load_detector(broken), said))
    told = [text for text in outcomes if text is not None]
    assert 0 < len(told) < 40
    assert all(str(broken) in text for text in told)


def test_a_detector_is_in_float32_whatever_torchs_default(directory):
    images = torch.rand(1, 3, 64, 64)
    wanted = load_detector(directory)(images).logits
    torch.set_default_dtype(torch.float64)
    try:
        found = load_detector(directory)(images).logits
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, wanted)
