"""Measure Promenade's detectors side by side: AP and AR a group, gaps with standard errors, what they see of gender.

python tools/measure_promenade_detectors.py src/faap/promenade/assets/detector_*
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize

from faap.data import FaapImages, Split, collate, load_dataset
from faap.detectors import FrozenDetector, load_detector
from faap.evaluation import MetricFrame, detect


def matched_states(detector: FrozenDetector, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Decoder states (n, D) of the queries matched to people, and 1 for female (n,)."""
    images = FaapImages(split, detector.preprocessing, detector.label_map(split.categories))
    states, female = [], []
    for start in range(0, len(images), 32):
        batch = collate([images[i] for i in range(start, min(start + 32, len(images)))])
        with torch.no_grad():
            out = detector(batch.pixel_values, batch.pixel_mask)
        for i, (query, _) in enumerate(detector.match_all_layers(out, batch.targets)[-1]):
            states.append(out.features[i, query].numpy())
            female.append(np.full(len(query), float(batch.groups[i] == "female")))
    return np.concatenate(states).astype(float), np.concatenate(female)


def linear_probe(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> float:
    """Accuracy on `test` of a logistic regression fitted on `train`, features standardised, light L2."""
    mean, std = train[0].mean(0), train[0].std(0) + 1e-6
    x, y = (train[0] - mean) / std, train[1]

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logit = x @ weights[:-1] + weights[-1]
        error = 1 / (1 + np.exp(-logit)) - y
        loss = np.mean(np.logaddexp(0, logit) - y * logit) + 1e-3 * weights[:-1] @ weights[:-1]
        gradient = np.append(x.T @ error / len(y) + 2e-3 * weights[:-1], error.mean())
        return float(loss), gradient

    weights = minimize(objective, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B").x
    guess = (test[0] - mean) / std @ weights[:-1] + weights[-1] > 0
    return float((guess == (test[1] > 0.5)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detectors", nargs="+", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dataset = load_dataset("promenade")
    split = dataset.split(args.split)
    for path in args.detectors:
        detector = load_detector(path)
        found = detect(detector, split)
        frame = MetricFrame(split, found, metrics=["AP", "AP50", "AR100"])
        gap = frame.difference[split.anchor]
        probe = linear_probe(matched_states(detector, dataset.split("val")), matched_states(detector, split))
        print(
            json.dumps(
                {
                    "detector": path.name,
                    **{
                        f"{key}_{group}": round(row[key]["value"], 4)
                        for key in frame.metrics
                        for group, row in frame.by_group.items()
                    },
                    **{
                        f"{key}_gap": [round(gap[key][part], 4) for part in ("value", "standard_error")]
                        for key in ("AP", "AR100")
                    },
                    "gender_probe": round(probe, 3),
                }
            )
        )


if __name__ == "__main__":
    main()
