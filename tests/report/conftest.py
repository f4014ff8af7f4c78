"""Synthetic run directories and examples."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from faap.data import Record
from faap.evaluation import METRICS, Detections
from faap.evaluation.criteria import success_criteria
from faap.evaluation.statistics import change
from faap.report import Example


def make_metrics(anchor="female", reference="male", *, anchor_ap=(0.3446, 0.3489), reference_ap=(0.4424, 0.4391)):
    """A metrics.json as `faap.evaluate` makes it, with AP of both groups as given (before, after)."""

    def of(ap):
        shares = (1.0, 1.6, 1.02, 0.4, 1.1, 1.3, 0.7, 1.25, 1.3)
        return {name: ap * share for name, share in zip(METRICS, shares, strict=True)}

    before, after = ({anchor: of(anchor_ap[i]), reference: of(reference_ap[i])} for i in (0, 1))

    def certain(values):
        """Replicates that all say the same."""
        return {group: {name: np.full(42, value) for name, value in each.items()} for group, each in values.items()}

    def moved(of):
        """A change by which each metric moves, and replicates around it."""
        spread = 0.01 * np.array([0, *np.linspace(-1, 1, 41)])
        return {name: change(old + spread, new + 1.5 * spread) for name, old, new in of}

    gap = moved((name, *(m[reference][name] - m[anchor][name] for m in (before, after))) for name in METRICS)
    gap["AP"] |= {"ci95": [-0.0121, -0.0029], "p_value": 0.002}
    changes = {group: moved((name, before[group][name], after[group][name]) for name in METRICS) for group in before}

    return {
        "split": "test",
        "images": {anchor: 600, reference: 600},
        "baseline": before,
        "perturbed": after,
        "gap": {"AP": gap["AP"], "AR": gap["AR100"]},
        "gaps": {anchor: gap},
        "changes": changes,
        "success": success_criteria(before, after, [certain(before), certain(after)]),
        "warnings": [],
        "perturbation": {
            "epsilon": 0.09,
            "linf_normalised": 0.09,
            "linf_pixels": 6.0,
            "psnr_db": 37.42,
            "ssim": 0.9621,
        },
        "provenance": {
            "dataset": "data/<people>",
            "split_sha256": "1a" * 32,
            "detector": {"name": "detr-r50", "file_sha256": "2b" * 32, "tensors_sha256": "5f" * 32},
            "generator": {"arch": "light", "epsilon": 0.09, "sha256": "3c" * 32},
            "versions": {"faap": "0.9", "torch": "2.8", "transformers": "4.56"},
            "date": "2026-01-02T03:04:05+00:00",
        },
        "detector_sha256": "5f" * 32,
    }


def make_log(epochs, anchor="female", reference="male"):
    """train_log.jsonl of a run whose gap falls slowly."""
    rng = np.random.default_rng(1)
    rows = []
    for epoch in range(epochs):
        done = epoch / max(1, epochs - 1)

        def noisy(value, scale=0.02):
            return float(value * (1 + scale * rng.normal()))

        after = {anchor: noisy(0.34 + 0.006 * done, 0.004), reference: noisy(0.44 - 0.003 * done, 0.003)}
        rows.append(
            {
                "epoch": epoch,
                "seconds": 61.0,
                "images": 2000,
                "train": {
                    "total": noisy(2.9 - 0.4 * done),
                    "infonce": noisy(0.68 - 0.05 * done),
                    "alignment": noisy(0.012 - 0.006 * done, 0.1),
                    "wasserstein": noisy(0.041 - 0.01 * done, 0.1),
                    "detection": noisy(4.1 - 0.3 * done),
                    "sim_f2m": noisy(0.61 + 0.2 * done),
                    "sim_f2f": noisy(0.66 + 0.16 * done),
                    "score_gap": noisy(0.03 - 0.01 * done, 0.15),
                    "delta_linf": 0.1,
                    "delta_l2": 4.0,
                    "gradient_norm": 0.6,
                    "n_f": 4.0,
                    "n_m": 4.0,
                },
                "schedule": {
                    "epsilon": 0.05 + 0.05 * min(1, epoch / 6),
                    "beta": 0.5 + 0.1 * done,
                    "contrastive_weight": min(1, (epoch + 1) / 4),
                    "learning_rate": 1e-4 * (1 - done) + 1e-6,
                },
                "validation": {
                    "baseline": {anchor: {"AP": 0.3401, "AR100": 0.49}, reference: {"AP": 0.4398, "AR100": 0.52}},
                    "perturbed": {
                        g: {"AP": ap, "AR100": ap + 0.15 - 0.07 * (g == reference)} for g, ap in after.items()
                    },
                    "gap": {"AP": after[reference] - after[anchor], "AR": after[reference] - after[anchor] - 0.07},
                },
            }
        )
    return rows


def write_run_directory(folder, data, rows=None, config=None):
    (folder / "metrics.json").write_text(json.dumps(data), encoding="utf-8")
    if rows is not None:
        (folder / "train_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return folder


def make_example(group="female", *, width=160, height=128, seed=0, name="000017.jpg", people=2):
    """A striped image with a few boxes, each found well or badly, and a perturbation of at most 6 levels."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:height, :width]
    base = np.stack([90 + 60 * np.sin(xx / 17), 110 + 50 * np.cos(yy / 23), 120 + 30 * np.sin((xx + yy) / 31)], axis=2)
    boxes = np.array([[20 + 55 * i, 25 + 8 * i, 30, 80 - 10 * i] for i in range(people)], dtype=np.float64)
    boxes *= np.array([width / 160, height / 128] * 2)
    for x, y, w, h in boxes.astype(int):
        base[y : y + h, x : x + w] += (40, 20, 30)
    pixels = base.clip(0, 255).astype(np.uint8)
    noise = 6 * np.sin(xx[..., None] / 5 + np.arange(3)) * np.cos(yy[..., None] / 7)
    perturbed = (pixels + noise.round()).clip(0, 255).astype(np.uint8)
    record = Record(
        image_id=seed + 1,
        path=Path("women_split/test") / name,
        width=width,
        height=height,
        group=group,
        boxes=boxes,
        labels=np.ones(people, dtype=np.int64),
        areas=boxes[:, 2] * boxes[:, 3],
        crowd=np.zeros(people, dtype=bool),
        pair=None,
    )

    def detections(*scores):
        moved = np.concatenate([boxes + rng.normal(0, 2, boxes.shape), boxes[:1] + np.array([4, 6, -5, -8])])
        return Detections(record.image_id, np.array(scores[: len(moved)]), np.ones(len(moved), dtype=np.int64), moved)

    return Example(record, pixels, perturbed, detections(0.91, 0.42, 0.56, 0.3), detections(0.94, 0.61, 0.31, 0.2))


KEYS = ("ap_gap", "ar_gap", "anchor_ap", "reference_ap")


def make_comparison(names=("infonce_4th", "moco_4th", "wgan_7th"), seeds=3, anchor="female", reference="male"):
    """A compare.json: each recipe lifts the anchor group, peaks at its own epoch, and has terms of its own."""
    rng = np.random.default_rng(0)
    baseline = {"ap_gap": 0.0763, "ar_gap": 0.0094, "anchor_ap": 0.3905, "reference_ap": 0.4668}
    before = {"ap_gap": 0.0749, "ar_gap": -0.0029, "anchor_ap": 0.3977, "reference_ap": 0.4726}
    recipes = []
    for i, name in enumerate(names):
        epochs = (24, 10, 30)[i % 3]
        runs = []
        for seed in range(seeds):
            done = np.arange(epochs) / epochs
            lift = 0.012 * (np.sin(np.pi * done) if i % 2 else np.sqrt(done)) * (0.3 + 0.2 * (i % 5))

            def noisy(values, scale):
                return (values + scale * rng.normal(size=epochs)).round(6).tolist()  # noqa: B023

            ap = noisy(before["anchor_ap"] + lift, 8e-4), noisy(before["reference_ap"] + 0.4 * lift, 8e-4)
            validation = {
                "ap_gap": (np.array(ap[1]) - ap[0]).tolist(),
                "ar_gap": noisy(before["ar_gap"] - lift, 1e-3),
                "anchor_ap": ap[0],
                "reference_ap": ap[1],
            }
            train = {
                ("infonce", "momentum", "adversarial")[i % 3]: noisy(1.4 - 0.2 * done, 0.02),
                "wasserstein": noisy(0.14 - 0.1 * done, 0.01),
                "detection": noisy(5.5 - 0.3 * done, 0.05),
                "total": noisy((3.3, 8.9, -2.0)[i % 3] - 0.6 * done, 0.05),
                "sim_f2m": noisy(0.7 + 0.2 * done, 0.01),
                "sim_f2f": noisy(0.83 + 0.1 * done, 0.01),
                "score_gap": noisy(0.14 - (0.1 + 0.03 * (i % 4)) * done, 0.01),
                "n_f": [4.0] * epochs,
                "n_m": [4.0] * epochs,
                "gradient_norm": noisy(2.8 + done, 0.1),
                "delta_linf": [0.09] * epochs,
                "delta_l2": [0.9] * epochs,
            } | ({"queue": [2048.0] * epochs} if i % 3 == 1 else {})
            chosen = int(np.argmin(validation["ap_gap"]))
            anchor_ap = baseline["anchor_ap"] + ap[0][chosen] - before["anchor_ap"] + 1e-3 * rng.normal()
            reference_ap = baseline["reference_ap"] + ap[1][chosen] - before["reference_ap"] + 1e-3 * rng.normal()
            four = {
                "ap_gap": reference_ap - anchor_ap,
                "ar_gap": baseline["ar_gap"] - 0.003 + 1e-3 * rng.normal(),
                "anchor_ap": anchor_ap,
                "reference_ap": reference_ap,
            }
            change = four["ap_gap"] - baseline["ap_gap"]
            goals = (four["ap_gap"] < 0.0717, four["ar_gap"] < 0.0058, anchor_ap > 0.3964, reference_ap >= 0.4668)
            runs.append(
                {
                    "seed": seed,
                    "run_dir": f"faap_outputs/compare/{name}/seed_{seed}",
                    "epoch": chosen,
                    **four,
                    "ap_gap_change": change,
                    "ap_gap_ci95": [change - 0.004, change + 0.005],
                    "success": dict(zip(KEYS, map(bool, goals), strict=True)),
                    "seconds": 12.7 * epochs + seed,
                    "images": 480 * epochs,
                    "curves": {"epoch": list(range(epochs)), "validation": validation, "train": train},
                }
            )

        def spread(values):
            return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else None}

        summary = {key: spread([run[key] for run in runs]) for key in KEYS}
        for key, each in summary.items():
            each |= {"change": each["mean"] - baseline[key], "images_error": 0.0021}
        recipes.append(
            {
                "name": name,
                "description": f"Description {i} of {name}",
                "epochs": epochs,
                "batch_size": (8, 8, 4)[i % 3],
                "differs": {"temperature": 0.07, "epochs": epochs} if i else {},
                "summary": summary,
                "success": {key: sum(run["success"][key] for run in runs) for key in KEYS},
                "seconds": spread([run["seconds"] for run in runs]),
                "detector_passes": {"forward": 980 * epochs, "backward": 480 * epochs},
                "runs": runs,
            }
        )
    return {
        "split": "test",
        "anchor": anchor,
        "reference": reference,
        "images": {anchor: 700, reference: 700},
        "rule": "Each run's epoch is chosen on the validation split.",
        "detector_sha256": "5f" * 32,
        "baseline": baseline,
        "validation_baseline": before,
        "shared": {"images_per_epoch": 480, "dataset_root": "promenade"},
        "recipes": recipes,
        "failed": [],
    }


@pytest.fixture(scope="session")
def comparison():
    return make_comparison


@pytest.fixture(scope="session")
def metrics():
    return make_metrics


@pytest.fixture(scope="session")
def log():
    return make_log


@pytest.fixture(scope="session")
def example():
    return make_example


@pytest.fixture(scope="session")
def write_run():
    return write_run_directory
