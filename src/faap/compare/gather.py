"""What runs left, read as one comparison."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from faap.config import Recipe, fields_of
from faap.conform import conform
from faap.errors import FaapError
from faap.evaluation import best_epoch
from faap.evaluation.criteria import MET, NOT_MET, UNKNOWN, is_dead, verdict_of
from faap.evaluation.gaps import HEADLINE, headline
from faap.report.words import difference, number
from faap.runs import Run

RULE = (
    "Each run's epoch is chosen on the validation split: the smallest AP gap in size among the epochs whose reference "
    "AP is not below the baseline's there, and if there is none, the smallest loss of reference AP. The test split is "
    "read once, at the chosen epoch."
)
# by which AP or AR may differ from device to device, for the same detector and images
ROUNDING = 1e-3
BLIND = "The detector finds nobody to speak of: right checkpoint? right class names?"
# in which recipes differ without differing in what they train
_OWN = {*fields_of("run"), "seed"}

# what a comparison says of a run beyond what every run has
_METRICS = {
    "gap": {"AP": {"ci95": (list, None)}},
    "success": {key: {"met": bool} for key in HEADLINE},
    "warnings?": [str],
    "provenance?": {"split_sha256?": str},
}


def gather(runs: Sequence[Recipe], failed: Mapping[str, str]) -> dict[str, Any]:
    """Read finished runs as one comparison.

    Args:
        runs: recipes with their run directories; those of one recipe share its name.
        failed: run directory → what went wrong; these runs are left out.

    Returns:
        The content of compare.json: split, anchor, reference, images, rule, detector_sha256, baseline and
        validation_baseline {ap_gap, ar_gap, anchor_ap, reference_ap}, shared (fields that no recipe differs in),
        recipes (each with summary, success and verdicts {key: runs}, cost and runs with their curves), warnings of the
        runs' measurements, and failed.

    Raises:
        FaapError: if what a run left cannot be read, or two runs have different baselines, so that nothing can be
            compared.
    """
    found = [read(run) for run in runs if run.output_dir not in failed]
    by_name: dict[str, list[Result]] = {}
    for each in found:
        _refuse_other_measurement(each, found[0])
        by_name.setdefault(each.run.name, []).append(each)
    first = found[0] if found else None
    groups = _groups(runs[0])
    settings = {name: results[0].run.to_dict() for name, results in by_name.items()}
    reference = settings[first.run.name] if first else {}
    baseline = headline(first.metrics["baseline"], *groups) if first else dict.fromkeys(HEADLINE)
    validation = headline(first.log[0]["validation"]["baseline"], *groups) if first else dict.fromkeys(HEADLINE)
    return {
        "split": "test",
        "anchor": groups[0],
        "reference": groups[1],
        "images": first.metrics["images"] if first else {},
        "rule": RULE,
        "detector_sha256": first.metrics["detector_sha256"] if first else None,
        "baseline": baseline,
        "validation_baseline": validation,
        "shared": {
            key: value
            for key, value in reference.items()
            if key not in _OWN and all(each.get(key) == value for each in settings.values())
        },
        "recipes": [
            {
                "name": name,
                **{key: settings[name][key] for key in ("description", "epochs", "batch_size")},
                "differs": {k: v for k, v in settings[name].items() if k not in _OWN and v != reference.get(k)},
                **_recipe_row([_run_row(each) for each in results], baseline),
            }
            for name, results in by_name.items()
        ],
        "warnings": _warnings(found),
        "failed": [
            {"recipe": run.name, "seed": run.seed, "error": failed[run.output_dir]}
            for run in runs
            if run.output_dir in failed
        ],
    }


class Result(NamedTuple):
    """What a finished run left."""

    run: Recipe
    metrics: dict[str, Any]
    log: list[dict[str, Any]]


def read(run: Recipe) -> Result:
    """Read what a finished run left.

    Raises:
        FaapError: if it cannot be read, or lacks what a comparison says.
    """
    folder = Run(run.output_dir)
    metrics, log = folder.read_metrics(), folder.read_log()
    groups = {group: {"AP": (float, None), "AR100": (float, None)} for group in _groups(run)}
    both = {"baseline": groups, "perturbed": groups}
    conform(metrics, _METRICS | both, str(folder.metrics))
    conform([row["validation"] for row in log], [both], str(folder.log))
    if not log:
        raise FaapError(f"{folder.log}: holds no epoch.")
    return Result(run, metrics, log)


def _groups(run: Recipe) -> tuple[str, str]:
    return run.anchor_group, run.reference_group


def outcome(run: Recipe) -> str:
    """Say in a line what came out of a finished run."""
    _, metrics, log = read(run)
    gap, seconds = metrics["gap"]["AP"], sum(row["seconds"] for row in log)
    return f"AP gap {number(gap['baseline'])} → {number(gap['perturbed'])}, {seconds:.0f} s"


def _refuse_other_measurement(one: Result, other: Result) -> None:
    """Raise unless two runs were measured with the same detector on the same images."""
    splits = {each.metrics.get("provenance", {}).get("split_sha256") for each in (one, other)} - {None}
    same = len(splits) < 2 and all(one.metrics[key] == other.metrics[key] for key in ("images", "detector_sha256"))
    before, after = one.metrics["baseline"], other.metrics["baseline"]
    values = [
        (before[group][key] or 0, after[group][key] or 0) for group in _groups(one.run) for key in ("AP", "AR100")
    ]
    if not same or any(abs(mine - theirs) > ROUNDING for mine, theirs in values):
        raise FaapError(
            f"{one.run.output_dir} and {other.run.output_dir} were measured on other data or another detector: nothing "
            "can be compared. Use another --output_dir."
        )


def _is_blind(result: Result) -> bool:
    """Whether neither group is found, before or after; an earlier faap did not ask, and called it success."""
    before, after = (result.metrics[key] for key in ("baseline", "perturbed"))
    return any(all(is_dead(metrics[group]) for group in _groups(result.run)) for metrics in (before, after))


def _verdicts(result: Result) -> dict[str, str]:
    """Return of each criterion whether it is met."""
    said = {key: verdict_of(result.metrics["success"][key]) for key in HEADLINE}
    return {key: UNKNOWN if verdict == MET and _is_blind(result) else verdict for key, verdict in said.items()}


def _warnings(found: Sequence[Result]) -> list[str]:
    """Return what the measurements warn of, once each, with the runs it is about unless it is about all."""
    about: dict[str, list[str]] = {}
    for each in found:
        for text in each.metrics.get("warnings", [BLIND] * _is_blind(each)):
            about.setdefault(text, []).append(f"{each.run.name}, seed {each.run.seed}")
    return [text if len(names) == len(found) else f"{'; '.join(names)}: {text}" for text, names in about.items()]


def _run_row(result: Result) -> dict[str, Any]:
    """One run's row of the comparison."""
    run, metrics, log = result
    groups = _groups(run)
    validation = [headline(row["validation"]["perturbed"], *groups) for row in log]
    gap, verdicts = metrics["gap"]["AP"], _verdicts(result)
    return {
        "seed": run.seed,
        "run_dir": run.output_dir,
        "epoch": best_epoch(log, run.reference_group),
        **headline(metrics["perturbed"], *groups),
        "ap_gap_change": gap["change"],
        "ap_gap_ci95": gap["ci95"],
        "success": {key: verdict == MET for key, verdict in verdicts.items()},
        "verdicts": verdicts,
        "seconds": sum(row["seconds"] for row in log),
        "images": sum(row["images"] for row in log),
        "curves": {
            "epoch": [row["epoch"] for row in log],
            "losses": log[-1].get("losses"),
            "validation": {key: [_rounded(values[key]) for values in validation] for key in HEADLINE},
            "train": {name: [_rounded(row["train"].get(name)) for row in log] for name in log[0]["train"]},
        },
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _recipe_row(runs: list[dict[str, Any]], baseline: Mapping[str, float | None]) -> dict[str, Any]:
    """What the runs of one recipe have in common; a run makes each image go through the detector once and back."""
    summary = {key: _spread([run[key] for run in runs]) for key in HEADLINE}
    verdicts = {
        key: dict.fromkeys((MET, NOT_MET, UNKNOWN), 0) | Counter(run["verdicts"][key] for run in runs)
        for key in HEADLINE
    }
    return {
        # the baseline is one number, so that a change varies as what it changes
        "summary": {
            key: spread | {"change": difference(baseline[key], spread["mean"]), "change_std": spread["std"]}
            for key, spread in summary.items()
        },
        "success": {key: counts[MET] for key, counts in verdicts.items()},
        "verdicts": verdicts,
        "seconds": _spread([run["seconds"] for run in runs]),
        "detector_passes": dict.fromkeys(("forward", "backward"), runs[0]["images"]),
        "runs": runs,
    }


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and sample standard deviation of what is known."""
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "std": statistics.stdev(known) if len(known) > 1 else None,
    }
