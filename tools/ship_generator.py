"""Make the generator that ships with the package out of finished runs of `equal`, one a seed.

    .venv/bin/faap compare equal --seeds 5 --output_dir faap_outputs/equal
    .venv/bin/python tools/ship_generator.py faap_outputs/equal/equal/seed_*

The run whose chosen epoch has the highest AP of the worse found group on the validation split is taken. The tool
rounds its generator to half precision, measures that on the test split, and writes the run's folder without its
checkpoints: `generator/`, `config.yaml`, `train_log.jsonl`, `metrics.json`; and in `seeds.json` what all runs and the
control detector left on the test split.
"""

import argparse
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import faap
from faap.config import run_recipe
from faap.evaluation import NONE_WORTH_IT, MetricFrame, best_epoch, detect
from faap.evaluation.gaps import GAPS
from faap.perturbation import save_generator
from faap.promenade import detector_dir, shipped_run
from faap.report import measure
from faap.runs import Run, copy_file, cost_of


def worst_ap(run: Run) -> float:
    """The lower of both groups' AP on validation, at the epoch that was chosen."""
    log = run.read_log()
    groups = log[best_epoch(log)]["validation"]["perturbed"].values()
    return min(float(group["AP"]) for group in groups)


def row(run: Run) -> dict[str, Any]:
    """What one run left on the test split."""
    metrics = run.read_metrics()
    assert metrics["split"] == "test"
    left = {name: {key: gap[key] for key in ("perturbed", "perturbed_ci95")} for name, gap in metrics["gap"].items()}
    moved = {group: values["AP"] for group, values in metrics["changes"].items()}
    chosen = {"seed": run_recipe(run).seed, "epoch": best_epoch(run.read_log())} | cost_of(run.path)["training"]
    return chosen | {"gap": left, "AP": moved, "sha256": metrics["provenance"]["generator"]["sha256"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--out", type=Path, default=shipped_run(), help="default: %(default)s")
    args = parser.parse_args()
    runs = sorted((Run(path) for path in args.runs), key=worst_ap)
    best, recipe = runs[-1], run_recipe(runs[-1])
    rows = sorted((row(run) for run in runs), key=lambda each: each["seed"])
    with tempfile.TemporaryDirectory() as temporary:
        made = Run(temporary)
        save_generator(faap.load_generator(best.path).half(), made.generator)
        copy_file(best.log, made.log)
        replace(recipe, output_dir="").save(made.config)
        detector, dataset = faap.load_detector(recipe.detr_checkpoint), faap.load_dataset(**recipe.data())
        warnings = [each for each in best.read_metrics()["warnings"] if each == NONE_WORTH_IT]
        metrics = measure(detector, faap.load_generator(made.path), dataset, made, warnings=warnings)
        metrics["provenance"]["dataset"] = recipe.dataset_root  # not where it lies on this machine
        made.write_metrics(metrics)
        split = dataset.split("test")
        frame = MetricFrame(split, detect(faap.load_detector(detector_dir("control")), split), metrics=[*GAPS.values()])
        control = {
            name: frame.difference[split.anchor][metric]
            | {"groups": {group: row[metric] for group, row in frame.by_group.items()}}
            for name, metric in GAPS.items()
        }
        shutil.rmtree(args.out, ignore_errors=True)
        shutil.copytree(made.path, args.out, ignore=shutil.ignore_patterns("report.html"))
    said = {"runs": rows, "control": control}
    (args.out / "seeds.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
