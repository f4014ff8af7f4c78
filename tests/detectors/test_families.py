"""Every family of `transformers` that is loaded: saved to disk, loaded back, exact, frozen, with its own loss.

The reference is always the library's own model in memory, neither saved nor prepared.
"""

import copy
import json
import shutil

import pytest
import torch
from rich.console import Console
from transformers.loss.loss_utils import LOSS_MAPPING

import faap
from detectors.tiny_families import CONFIGS, SIDE, build
from faap.data.images import Preprocessing
from faap.detectors import FAMILIES, load_detector
from faap.detectors.hugging_face import HuggingFaceDetector
from faap.errors import FaapError
from faap.perturbation import build_generator

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
# These two are put together here, layer by layer: see `test_hugging_face`.
REPLAYED = ("detr", "conditional_detr")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """case -> (the library's model, the directory that it was saved in)."""
    known = {}

    def save(case):
        if case not in known:
            model, directory = build(case), tmp_path_factory.mktemp("families") / case
            model.save_pretrained(directory)
            content = {"size": {"height": SIDE, "width": SIDE}, "do_normalize": False}
            (directory / "preprocessor_config.json").write_text(json.dumps(content))
            known[case] = model, directory
        return known[case]

    return save


@pytest.fixture(scope="module", params=CONFIGS)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def family(case):
    return FAMILIES[CONFIGS[case][0]]


@pytest.fixture(scope="module")
def model(case, saved):
    """The library's model, with the earlier layers in its loss; without groups, of which evaluation has only one."""
    model = copy.deepcopy(saved(case)[0])
    model.config.auxiliary_loss = case not in (*REPLAYED, "yolos")
    if hasattr(model.config, "group_detr"):
        model.config.group_detr = 1
    return model


@pytest.fixture(scope="module")
def detector(case, saved):
    return load_detector(saved(case)[1])


@pytest.fixture(scope="module")
def images(family):
    """Two images and their mask; the second is smaller where the family can tell padding."""
    generator = torch.Generator().manual_seed(3)
    pixels, mask = torch.randn(2, 3, SIDE, SIDE, generator=generator), torch.ones(2, SIDE, SIDE, dtype=torch.bool)
    if family.reads_mask:
        mask[1, 30:], mask[1, :, 40:] = False, False  # half of the cells at stride 32 are left
    return pixels * mask[:, None], mask


@pytest.fixture(scope="module")
def targets():
    generator = torch.Generator().manual_seed(4)
    return [
        {
            "labels": torch.randint(0, 3, (n,), generator=generator),
            "boxes": 0.15 + 0.5 * torch.rand(n, 4, generator=generator),
        }
        for n in (3, 2)
    ]


def call(model, pixels, mask, targets=None):
    arguments = {} if model.config.model_type == "yolos" else {"pixel_mask": mask}
    if targets is not None:
        arguments["labels"] = [{"class_labels": target["labels"], "boxes": target["boxes"]} for target in targets]
    return model(pixels, **arguments)


def layers_of_encoder(family):
    return family.class_loss in ("varifocal", "quality")


def test_the_table_has_every_family():
    assert {kind for kind, _ in CONFIGS.values()} == set(FAMILIES)


def test_outputs_are_the_librarys(case, model, detector, images):
    out = detector(*images)
    own = call(model, *images)
    torch.testing.assert_close(out.logits, own.logits, **CLOSE)
    torch.testing.assert_close(out.boxes, own.pred_boxes, **CLOSE)
    torch.testing.assert_close(out.features, own.last_hidden_state[:, -out.logits.shape[1] :], **CLOSE)
    assert out.features.shape == (2, detector.num_queries, detector.feature_dim)
    assert detector.activation == ("softmax" if case in ("detr", "yolos") else "sigmoid")
    assert out.logits.shape[2] == 3 + (detector.activation == "softmax")
    assert detector.labels == {0: "bicycle", 1: "Person", 2: "dog"}
    assert out.logits.std() > 0.1
    assert out.logits.std(1).min() > 5e-4


def test_features_are_what_the_class_head_reads(detector, images):
    heads = [
        module
        for name, module in detector.model.named_modules()
        if name.rpartition(".")[2] in ("class_labels_classifier", "class_embed") or ".class_embed." in f".{name}"
    ]
    seen = []
    hooks = [head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0])) for head in heads]
    out = detector(*images)
    for hook in hooks:
        hook.remove()
    states = [state if state.dim() == 3 else state[-1] for state in seen]
    assert any(torch.equal(state, out.features) for state in states)


def test_earlier_layers_are_the_librarys(case, family, model, detector, images, targets):
    out, own = detector(*images), call(model, *images, targets)
    layers = [(layer["logits"], layer["pred_boxes"]) for layer in own.auxiliary_outputs or []]
    if family.aux == 1:
        layers = [layers[-1], *layers[:-1]]  # the library puts the encoder's proposals last
    elif layers_of_encoder(family):
        layers = [(own.enc_outputs_class, own.enc_outputs_coord_logits), *layers]
    if case in REPLAYED:
        assert len(out.aux) == 2
        return
    assert len(out.aux) == len(layers) == {"yolos": 0, "d_fine": 1}.get(case, 3 if layers_of_encoder(family) else 2)
    for mine, theirs in zip(out.aux, layers, strict=True):
        # the scores of RT-DETR's proposals, of size 1, are rounded more than others; see the test in float64
        torch.testing.assert_close(mine, theirs, rtol=5e-5, atol=5e-5)
        assert (mine[0] - out.logits).abs().max() > 1e-2


def test_loss_and_its_gradient_are_the_librarys(case, model, detector, images, targets):
    nothing_in_one = [{key: value[:0] for key, value in targets[0].items()}, targets[1]]
    for wanted in (targets, nothing_in_one):
        pixels, same_pixels = (images[0].clone().requires_grad_() for _ in range(2))
        out = detector(pixels, images[1])
        loss = detector.loss(out, wanted)
        if case in REPLAYED:
            # With auxiliary_loss the library's forward is not DETR's: its loss is asked about these outputs.
            config = copy.deepcopy(model.config)
            config.auxiliary_loss = True
            labels = [{"class_labels": target["labels"], "boxes": target["boxes"]} for target in wanted]
            same = detector(same_pixels, images[1])
            layers = [*same.aux, (same.logits, same.boxes)]
            logits, boxes = (torch.stack(values) for values in zip(*layers, strict=True))
            expected = LOSS_MAPPING[model.loss_type](same.logits, labels, "cpu", same.boxes, config, logits, boxes)[0]
        else:
            expected = call(model, same_pixels, images[1], wanted).loss
        torch.testing.assert_close(loss, expected, **CLOSE)
        assert torch.equal(detector.loss(out, wanted, detector.match_all_layers(out, wanted)), loss)
        (mine,), (theirs,) = torch.autograd.grad(loss, pixels), torch.autograd.grad(expected, same_pixels)
        scale = theirs.abs().max()
        torch.testing.assert_close(mine / scale, theirs / scale, rtol=1e-4, atol=2e-4)


def test_preparing_changes_neither_outputs_nor_gradient(case, saved, detector, images, targets):
    plain = copy.deepcopy(saved(case)[0])
    plain.config.auxiliary_loss = detector.model.config.auxiliary_loss
    plain = HuggingFaceDetector(plain, name="plain", preprocessing=Preprocessing(), file_sha256="")
    gradients = []
    for each in (plain, detector):
        pixels = images[0].clone().requires_grad_()
        out = each(pixels, images[1])
        (each.loss(out, targets) + out.features.square().mean()).backward()
        gradients.append(pixels.grad)
    assert torch.isfinite(gradients[0]).all()
    scale = float(gradients[0].abs().max())
    assert scale > 1e-3
    torch.testing.assert_close(gradients[1] / scale, gradients[0] / scale, rtol=1e-4, atol=1e-4)
    # every image has a gradient of its own
    assert (gradients[0].abs().amax((1, 2, 3)) > 1e-4).all()


def test_it_stays_frozen(detector, images, targets):
    before = detector.tensors_sha256()
    torch.nn.Sequential(detector).train()
    assert not any(module.training for module in detector.modules())
    pixels = images[0].clone().requires_grad_()
    for _ in range(2):
        detector.loss(detector(pixels, images[1]), targets).backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in detector.parameters())
    assert detector.tensors_sha256() == before


def test_it_has_no_random_part(detector, images, targets):
    once, twice = detector(*images), detector(*images)
    assert torch.equal(once.logits, twice.logits)
    assert torch.equal(detector.loss(once, targets), detector.loss(twice, targets))


def test_padding_is_not_part_of_the_image(family, model, detector):
    """A family that does not read the mask sees each image alone, as if nothing were padded."""
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    mask = torch.ones(2, SIDE, SIDE, dtype=torch.bool)
    mask[0, :, 32:], pixels[0, :, :, 32:] = False, 0
    mask[1, 32:], pixels[1, :, 32:] = False, 0
    out = detector(pixels, mask)
    if family.reads_mask:
        assert (out.boxes - detector(pixels).boxes).abs().amax((1, 2)).min() > 1e-3
        return
    for i, image in enumerate((pixels[:1, :, :, :32], pixels[1:, :, :32])):
        own = call(model, image, None)
        torch.testing.assert_close(out.logits[i], own.logits[0], **CLOSE)
        torch.testing.assert_close(out.boxes[i], own.pred_boxes[0], **CLOSE)
        alone = detector(image)
        torch.testing.assert_close(out.features[i], alone.features[0], **CLOSE)
        for mine, theirs in zip(out.aux, alone.aux, strict=True):
            torch.testing.assert_close((mine[0][i], mine[1][i]), (theirs[0][0], theirs[1][0]), **CLOSE)


@pytest.mark.parametrize(
    ("case", "multiple"), [("rt_detr", 32), ("rt_detr_v2", 32), ("d_fine", 32), ("lw_detr", 16), ("rf_detr", 16)]
)
def test_a_size_that_strides_or_windows_do_not_divide_is_refused(case, multiple, saved, tmp_path):
    directory = shutil.copytree(saved(case)[1], tmp_path / case)
    path = directory / "preprocessor_config.json"
    for content in (
        {"size": {"height": 64, "width": 64 + multiple // 2}},
        {"size": {"height": 8 + 2 * multiple, "width": 64}},
        {"do_resize": False, "pad_size": {"height": 64, "width": 65}},
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(
            FaapError, match=rf"{case}.preprocessor_config.json: .*size is .* takes multiples of {multiple} "
        ):
            load_detector(directory)
    if case not in ("rt_detr", "lw_detr"):  # one of each kind of divisor
        return
    # by the edges sides are cut to multiples, and where images keep their size each is looked at
    path.write_text(json.dumps({"size": {"shortest_edge": 70, "longest_edge": 150}}))
    assert load_detector(directory).preprocessing.multiple == multiple
    path.write_text(json.dumps({"do_resize": False}))
    detector = load_detector(directory)
    assert detector(torch.zeros(1, 3, 2 * multiple, 3 * multiple)).boxes.isfinite().all()
    with pytest.raises(FaapError, match=rf"{case} takes images whose sides are multiples of {multiple}.* 68x64 pixels"):
        detector(torch.zeros(1, 3, 64, 68))


@pytest.mark.parametrize("case", ["rt_detr", "lw_detr"])
def test_a_detector_of_one_size_is_trained_against_and_measured(case, saved, tiny_promenade, tmp_path):
    recipe = faap.load_recipe(
        "infonce_4th",
        dataset_root=str(tiny_promenade),
        detr_checkpoint=str(saved(case)[1]),
        epochs=1,
        batch_size=4,
        images_per_epoch=8,
        num_workers=0,
        output_dir=str(tmp_path / "run"),
    )
    run = faap.train(recipe, console=Console(quiet=True))
    assert run.metrics["perturbation"]["linf_normalised"] > 0
    row = json.loads((tmp_path / "run" / "train_log.jsonl").read_text().splitlines()[0])
    assert row["train"]["detection"] > 1
    assert row["train"]["gradient_norm"] > 0
    metrics = faap.evaluate(
        load_detector(saved(case)[1]), build_generator(epsilon=0.0), faap.load_dataset(tiny_promenade), split="val"
    )
    assert metrics["baseline"] == metrics["perturbed"]


def test_the_weights_of_an_older_version_are_the_same_detector(case, saved, detector, tmp_path):
    model, directory = saved(case)
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(directory / name, tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")  # shared weights under all of their names
    assert load_detector(tmp_path).tensors_sha256() == detector.tensors_sha256()
