"""From images on disk to metrics.json."""

import json
import math
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from faap.data import MEAN, STD, Preprocessing, load_dataset
from faap.detectors import DetectorOutput, FrozenDetector
from faap.errors import FaapError
from faap.evaluation import METRICS, MetricFrame, detect, evaluate, group_metrics
from faap.evaluation.bootstrap import replicate
from faap.evaluation.criteria import MET, UNKNOWN, success_criteria
from faap.evaluation.gaps import without_nan
from faap.perturbation import Generator, build_generator
from faap.report.measure import measure

SIZES = [(64, 48), (80, 48), (64, 64)]  # width, height


class Quarters(FrozenDetector):
    """Takes each quarter of the image for an object, the surer the brighter: people on the left, dogs on the right."""

    CENTRES = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])

    def __init__(self):
        super().__init__(
            nn.Linear(1, 1),
            name="quarters",
            labels={0: "dog", 1: "person"},
            num_queries=4,
            feature_dim=8,
            preprocessing=Preprocessing(shortest_edge=None, longest_edge=None),
            activation="softmax",
            file_sha256="",
        )
        self.seen = []

    def forward(self, pixel_values, pixel_mask=None):
        if pixel_mask is None:
            pixel_mask = torch.ones_like(pixel_values[:, 0], dtype=torch.bool)
        self.seen.append((pixel_values.clone(), pixel_mask.clone()))
        logits = torch.tensor([-20.0, -20.0, 0.0]).repeat(len(pixel_values), 4, 1)
        for image, mask, row in zip(pixel_values, pixel_mask, logits, strict=True):
            height, width = int(mask[:, 0].sum()), int(mask[0].sum())
            for q, (x, y) in enumerate(self.CENTRES):
                part = image[:, :height, :width]
                top, left = int((y - 0.25) * height), int((x - 0.25) * width)
                bright = part[:, top : top + height // 2, left : left + width // 2].mean()
                row[q, 1 - q % 2] = 2 * bright
        boxes = torch.cat([self.CENTRES, torch.full((4, 2), 0.5)], dim=1).expand(len(pixel_values), -1, -1)
        return DetectorOutput(logits, boxes, torch.zeros(len(pixel_values), 4, 8))


class Shift(nn.Module):
    """Adds a constant where the image is, as a generator would; remembers its mode."""

    epsilon = 0.1

    def __init__(self, by):
        super().__init__()
        self.by, self.modes = by, []

    def perturb(self, pixel_values, pixel_mask=None):
        self.modes.append(self.training)
        return pixel_values + self.by * (1 if pixel_mask is None else pixel_mask[:, None])


def write_data(root, images):
    """`images` images a group in the split-folder layout; men brighter, so that the detector is surer of them."""
    rng = np.random.default_rng(0)
    for word, light in (("women", 90), ("men", 130)):
        folder = root / f"{word}_split" / "test"
        folder.mkdir(parents=True)
        entries, annotations = [], []
        for i in range(images):
            width, height = SIZES[i % len(SIZES)]
            pixels = rng.integers(light - 60, light + 60, (2, 2, 3)).repeat(height // 2, 0).repeat(width // 2, 1)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{word}{i}.png")
            entries.append({"id": i + 1, "file_name": f"{word}{i}.png", "width": width, "height": height})
            for top in range(i % 2 + 1):
                box = [1.0 + rng.integers(3), top * height / 2 + rng.integers(3), width / 2 - 3, height / 2 - 3]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i + 1,
                        "category_id": 7,
                        "bbox": [float(v) for v in box],
                        "area": float(box[2] * box[3]),
                        "iscrowd": 0,
                    }
                )
        content = {"images": entries, "annotations": annotations, "categories": [{"id": 7, "name": "Person"}]}
        (root / f"{word}_split" / f"gender_{word}_test.json").write_text(json.dumps(content))
    return load_dataset(root)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), 7)


def test_detections_are_in_the_data_sets_own_terms(dataset):
    split = dataset.split("test")
    found = detect(Quarters(), split, batch_size=4)
    assert [d.image_id for d in found] == [r.image_id for r in split.records]
    for record, detected in zip(split.records, found, strict=True):
        w, h = record.width / 2, record.height / 2
        assert detected.labels.tolist() == [7, 7]  # the dogs are no category of this data set
        np.testing.assert_allclose(detected.boxes, [[0, 0, w, h], [0, h, w, h]], atol=1e-4)
        assert (detected.scores.dtype, detected.labels.dtype, detected.boxes.dtype) == ("float64", "int64", "float64")


@pytest.mark.parametrize("generator", [None, Shift(0.05)])
def test_the_size_of_batches_changes_nothing(dataset, generator):
    split = dataset.split("test")
    for one, many in zip(
        detect(Quarters(), split, generator, batch_size=1), detect(Quarters(), split, generator), strict=True
    ):
        np.testing.assert_allclose(one.scores, many.scores, atol=1e-6)
        np.testing.assert_allclose(one.boxes, many.boxes, atol=1e-4)


def test_the_detector_gets_eight_bit_pixels_and_untouched_padding(dataset):
    detector, split = Quarters(), dataset.split("test")
    detect(detector, split)
    detect(detector, split, Shift(0.05))
    (plain, mask), (perturbed, _) = detector.seen
    assert not mask.all()
    assert (perturbed[~mask[:, None].expand_as(perturbed)] == 0).all()
    levels = (perturbed * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255
    levels = levels[mask[:, None].expand_as(levels)]
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    change = ((perturbed - plain) * torch.tensor(STD)[:, None, None] * 255)[mask[:, None].expand_as(plain)]
    assert set(change.round().tolist()) == {3.0}  # 0.05 x 0.229 x 255 = 2.9, 0.05 x 0.224 x 255 = 2.86
    assert plain.min() < perturbed.min()


def test_the_generator_is_in_evaluation_mode_and_gets_its_own_back(dataset):
    generator = Shift(0.02).train()
    detect(Quarters(), dataset.split("test"), generator)
    assert generator.modes == [False]
    assert generator.training
    broken = Shift("a text").train()
    with pytest.raises(TypeError):
        detect(Quarters(), dataset.split("test"), broken)
    assert broken.modes == [False]
    assert broken.training


def test_the_callers_random_numbers_stay_as_they_were(dataset):
    detector, before = Quarters(), torch.get_rng_state()
    detect(detector, dataset.split("test"), Shift(0.02))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [0, -1])
def test_batches_of_nothing_are_refused(dataset, size):
    with pytest.raises(FaapError, match=f"batch_size is {size}; it must be 1 or more"):
        evaluate(Quarters(), Shift(0.02), dataset, batch_size=size)


def test_what_has_no_weights_is_measured(dataset, tmp_path):
    class Fixed(Generator):
        arch, WIDTHS = "fixed", (8, 8, 8)

        def forward(self, pixel_values, pixel_mask=None):
            return torch.ones(1, 3, 1, 1)

    detector = Quarters()
    detector.model = nn.Identity()
    metrics = measure(detector, Fixed(), dataset, tmp_path / "out")
    assert metrics["perturbation"]["linf_normalised"] == pytest.approx(0.1 * math.tanh(1), abs=1e-6)


@pytest.mark.usefixtures("few_replicates")
def test_metrics_json(dataset):
    detector, generator, split = Quarters(), Shift(0.08), dataset.split("test")
    result = evaluate(detector, generator, dataset, bootstrap=20, seed=2)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result) == [
        "split",
        "images",
        "categories",
        "categories_left_out",
        "baseline",
        "perturbed",
        "gap",
        "gaps",
        "changes",
        "success",
        "warnings",
        "perturbation",
        "provenance",
        "detector_sha256",
    ]
    assert result["categories"] == ["Person"]
    assert result["categories_left_out"] == {}
    assert result["images"] == {"female": 7, "male": 7}
    before, after = detect(detector, split), detect(detector, split, generator)
    for name, detections in (("baseline", before), ("perturbed", after)):
        expected = group_metrics(split, detections)
        assert list(result[name]) == ["female", "male"]
        for group, metrics in expected.items():
            assert list(result[name][group]) == list(METRICS)
            for key, value in metrics.items():
                found = result[name][group][key]
                assert found is None if math.isnan(value) else found == pytest.approx(value, abs=1e-12)
    frame = MetricFrame(split, before, after, samples=20, seed=2)
    assert result["changes"] == without_nan(frame.by_group)
    assert result["gaps"] == without_nan(frame.difference)
    assert list(result["gaps"]) == ["female"]
    gap = result["gap"]
    assert gap == {"AP": result["gaps"]["female"]["AP"], "AR": result["gaps"]["female"]["AR100"]}
    for key, metric in (("AP", "AP"), ("AR", "AR100")):
        for name in ("baseline", "perturbed"):
            expected = result[name]["male"][metric] - result[name]["female"][metric]
            assert gap[key][name] == pytest.approx(expected, abs=1e-12)
    drawn = replicate(split, before, after, samples=20, seed=2)
    assert result["success"] == success_criteria(group_metrics(split, before), group_metrics(split, after), drawn)
    changes = [after["male"]["AP"] - before["male"]["AP"] for before, after in [drawn]]
    assert result["success"]["reference_ap"]["ci95"] == pytest.approx(np.percentile(changes[0][1:], [2.5, 97.5]))
    assert result["detector_sha256"] == detector.tensors_sha256()
    perturbation = result["perturbation"]
    assert list(perturbation)[:4] == ["epsilon", "jpeg", "resize", "shift"]
    assert list(perturbation)[4:] == ["linf_normalised", "linf_pixels", "psnr_db", "ssim"]
    assert perturbation["epsilon"] == 0.1
    assert perturbation["linf_normalised"] == pytest.approx(0.08, abs=1e-6)
    assert perturbation["linf_pixels"] == pytest.approx(5, abs=1e-3)
    # 0.08 in each channel is 4.67, 4.57 and 4.59 levels, rounded to 5
    assert perturbation["psnr_db"] == pytest.approx(20 * math.log10(255 / 5), abs=0.01)
    assert 0.9 < perturbation["ssim"] < 1


@pytest.mark.usefixtures("few_replicates")
def test_a_generator_that_does_nothing(dataset):
    result = evaluate(Quarters(), Shift(0.0), dataset, bootstrap=10)
    for gap in result["gap"].values():
        assert gap["change"] == 0
        assert gap["p_value"] == 1
    assert result["success"]["reference_ap"]["verdict"] == MET
    assert not any(result["success"][key]["met"] for key in ("ap_gap", "ar_gap", "anchor_ap"))
    assert result["perturbation"]["linf_pixels"] == 0
    assert result["perturbation"]["psnr_db"] is None
    assert result["perturbation"]["ssim"] == pytest.approx(1)


def test_a_known_baseline_is_not_detected_again(dataset):
    baseline = detect(Quarters(), dataset.split("test"))
    detector = Quarters()
    result = evaluate(detector, Shift(0.05), dataset, bootstrap=0, baseline=baseline)
    assert len(detector.seen) == 1
    assert result["baseline"] == evaluate(Quarters(), Shift(0.05), dataset, bootstrap=0)["baseline"]
    assert result["gap"]["AP"]["ci95"] is None
    assert {entry["verdict"] for entry in result["success"].values()} == {UNKNOWN}
    with pytest.raises(FaapError, match="13 entries of detections for 14 images"):
        evaluate(detector, Shift(0.05), dataset, baseline=baseline[1:])
    assert len(detector.seen) == 1


def test_absolute_criteria_on_request(dataset):
    result = evaluate(Quarters(), Shift(0.05), dataset, bootstrap=0, absolute=True)
    assert result["success"]["ap_gap"]["target"] == 0.1


def test_too_little_data_is_found_out_before_the_detector_runs(tmp_path):
    detector, tiny = Quarters(), write_data(tmp_path, 1)
    with pytest.raises(FaapError, match="a confidence interval needs at least two of each group"):
        evaluate(detector, Shift(0.05), tiny)
    assert detector.seen == []
    assert evaluate(detector, Shift(0.05), tiny, bootstrap=0)["gap"]["AP"]["p_value"] is None


def test_with_a_real_generator(dataset):
    torch.manual_seed(0)
    generator = build_generator(epsilon=0.1)
    perturbation = evaluate(Quarters(), generator, dataset, bootstrap=5)["perturbation"]
    assert perturbation["epsilon"] == 0.1
    assert 0 < perturbation["linf_normalised"] <= 0.1 + 1e-6
    assert perturbation["linf_pixels"] <= 6 + 1e-3


class Grey(Shift):
    """Turns every image grey."""

    def perturb(self, pixel_values, pixel_mask=None):
        return torch.zeros_like(pixel_values)


class BlindTo(Quarters):
    """Finds what Quarters finds, but nothing in grey images, or in none at all."""

    def __init__(self, *, grey_only):
        super().__init__()
        self.grey_only = grey_only

    def forward(self, pixel_values, pixel_mask=None):
        out = super().forward(pixel_values, pixel_mask)
        blind = (pixel_values.flatten(1).std(1) < 0.05) | (not self.grey_only)
        out.boxes = torch.where(blind[:, None, None], out.boxes + 5, out.boxes)  # far from the image
        return out


def test_a_detector_that_finds_nobody_is_said_and_meets_no_criterion(dataset):
    result = evaluate(BlindTo(grey_only=False), Shift(0.05), dataset, bootstrap=30)
    assert [result["baseline"][group]["AP"] for group in ("female", "male")] == [0, 0]
    assert not any(entry["met"] for entry in result["success"].values())
    assert "finds nobody" in result["warnings"][0]
    assert "right checkpoint? right class names?" in result["warnings"][0]


def test_a_generator_that_blinds_the_detector_meets_no_criterion(dataset):
    result = evaluate(BlindTo(grey_only=True), Grey(0.0), dataset, bootstrap=30)
    assert result["baseline"]["male"]["AP"] > 0.1
    assert [result["perturbed"][group]["AP"] for group in ("female", "male")] == [0, 0]
    assert not any(entry["met"] for entry in result["success"].values())
    assert any("With the generator the detector finds nobody" in text for text in result["warnings"])


def test_a_result_says_where_it_comes_from(dataset):
    detector = Quarters()
    found = evaluate(detector, build_generator(epsilon=0.1), dataset, bootstrap=0)["provenance"]
    assert found["dataset"] == str(dataset.root)
    assert found["split_sha256"] == dataset.split("test").fingerprint()
    assert found["detector"] == {"name": "quarters", "file_sha256": "", "tensors_sha256": detector.tensors_sha256()}
    assert list(found["versions"]) == ["faap", "torch", "transformers"]
    assert found["versions"]["torch"] == torch.__version__
    assert abs((datetime.now(UTC) - datetime.fromisoformat(found["date"])).total_seconds()) < 60
    assert (found["generator"]["arch"], found["generator"]["epsilon"]) == ("light", 0.1)
    torch.manual_seed(0)
    one, other = (
        evaluate(detector, each, dataset, bootstrap=0)["provenance"]["generator"]["sha256"]
        for each in (build_generator(epsilon=0.1), build_generator(epsilon=0.1))
    )
    assert len(one) == 64
    assert one != other


def test_what_was_found_is_not_detected_again(dataset):
    detector, generator, split = Quarters(), Shift(0.05), dataset.split("test")
    known = detect(detector, split), detect(detector, split, generator, with_distance=True)
    passes = len(detector.seen)
    result = evaluate(detector, generator, dataset, bootstrap=20, baseline=known[0], perturbed=known[1])
    assert len(detector.seen) == passes
    again = evaluate(detector, generator, dataset, bootstrap=20)
    del result["provenance"]["date"], again["provenance"]["date"]
    assert result == again


def test_a_detector_that_changes_while_it_is_measured_is_noticed(dataset, tmp_path):
    class Drifting(Quarters):
        def forward(self, pixel_values, pixel_mask=None):
            with torch.no_grad():
                self.model.bias += 1e-6
            return super().forward(pixel_values, pixel_mask)

    for measured in (
        lambda: evaluate(Drifting(), build_generator(), dataset, bootstrap=0),
        lambda: measure(Drifting(), build_generator(), dataset, tmp_path / "run"),
    ):
        with pytest.raises(FaapError, match="frozen detector quarters has changed while it was used"):
            measured()
    assert not (tmp_path / "run").exists()
