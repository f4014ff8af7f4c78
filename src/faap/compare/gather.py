"""What runs left, read as one comparison."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np

from faap.config import Recipe, fields_of
from faap.conform import conform
from faap.errors import FaapError
from faap.evaluation.criteria import MET, NOT_MET, UNKNOWN, is_dead, verdict_of
from faap.evaluation.gaps import GAPS, HEADLINE, difference, headline
from faap.report.charts import curves_of
from faap.report.words import number
from faap.runs import Run

RULE = (
    "Each run's epoch is chosen on the validation split: of those that lower no group's AP and make the gap smaller, "
    "each by more than its standard error, and whose gap is within that error of the smallest, the one that finds the "
    "worse group best; else the smallest sum of gap and loss. The test split is read once, at the chosen epoch."
)
# by which AP or AR may differ from device to device, for the same detector and images
ROUNDING = 1e-3
BLIND = "The detector finds nobody to speak of: right checkpoint? right class names?"
# in which recipes differ without differing in what they train
_OWN = {*fields_of("run"), "seed"}


class Result(NamedTuple):
    """What a finished run left."""

    run: Recipe
    metrics: dict[str, Any]
    log: list[dict[str, Any]]


def gather(runs: Sequence[Recipe], failed: Mapping[str, str]) -> dict[str, Any]:
    """Read finished runs as one comparison.

    Args:
        runs: recipes with their run directories; those of one recipe share its name.
        failed: run directory → what went wrong; these runs are left out.

    Returns:
        The content of compare.json: split, anchor, reference, images, rule, detector_sha256, baseline and
        validation_baseline {ap_gap, ar_gap, anchor_ap, reference_ap}, shared (fields that no recipe differs in),
        recipes (each with summary, success and verdicts {key: runs}, cost and runs with their curves), warnings of the
        runs' measurements, provenance of the first (dataset, split_sha256, detector, versions), and failed.

    Raises:
        FaapError: if what a run left cannot be read, or two runs have different baselines, so that nothing can be
            compared.
    """
    lost = [run for run in runs if run.output_dir in failed]
    found = [read(run) for run in runs if run not in lost]
    by_name: dict[str, list[Result]] = {}
    for each in found:
        _refuse_other_measurement(each, found[0])
        by_name.setdefault(each.run.name, []).append(each)
    anchor, reference = groups = _groups(runs[0])
    nobody = {"baseline": dict.fromkeys(groups, dict.fromkeys(GAPS.values()))}
    nothing = Result(runs[0], {"images": {}, "detector_sha256": None, **nobody}, [{"validation": nobody}])
    _, metrics, log = found[0] if found else nothing
    baseline = headline(metrics["baseline"], *groups)
    settings = {name: _settings(results[0].run) for name, results in by_name.items()}
    first: dict[str, Any] = next(iter(settings.values()), {})
    rows = []
    for name, results in by_name.items():
        row = {"name": name, **{key: getattr(results[0].run, key) for key in ("description", "epochs", "batch_size")}}
        row["differs"] = {k: v for k, v in settings[name].items() if v != first.get(k)}
        rows.append(row | _recipe_row([*map(_run_row, results)], baseline))
    result = {"split": "test", "anchor": anchor, "reference": reference, "images": metrics["images"], "rule": RULE}
    result |= {"detector_sha256": metrics["detector_sha256"], "baseline": baseline}
    result["validation_baseline"] = headline(log[0]["validation"]["baseline"], *groups)
    result["shared"] = {k: v for k, v in first.items() if all(each.get(k) == v for each in settings.values())}
    result |= {"recipes": rows, "warnings": _warnings(found)}
    if source := metrics.get("provenance"):
        result["provenance"] = {key: source[key] for key in ("dataset", "split_sha256", "detector", "versions")}
    result["failed"] = [{"recipe": run.name, "seed": run.seed, "error": failed[run.output_dir]} for run in lost]
    return result


def read(run: Recipe) -> Result:
    """Read what a finished run left.

    Raises:
        FaapError: if it cannot be read, or lacks what a comparison says.
    """
    folder = Run(run.output_dir)
    metrics, log = folder.read_metrics(), folder.read_log()
    groups = dict.fromkeys(_groups(run), dict.fromkeys(GAPS.values(), (float, None)))
    both = {"baseline": groups, "perturbed": groups}
    conform(metrics, both | {"changes": {group: {"AP": dict} for group in groups}}, str(folder.metrics))
    conform(log, [{"validation": both}], str(folder.log))
    if not log:
        raise FaapError(f"{folder.log}: holds no epoch.")
    return Result(run, metrics, log)


def title(run: Recipe) -> str:
    """Name a run."""
    return f"{run.name}, seed {run.seed}"


def outcome(run: Recipe) -> str:
    """Say in a line what came out of a finished run."""
    _, metrics, log = read(run)
    gap, seconds = metrics["gap"]["AP"], sum(row["seconds"] for row in log)
    return f"AP gap {number(gap['baseline'])} → {number(gap['perturbed'])}, {seconds:.0f} s"


def _settings(run: Recipe) -> dict[str, Any]:
    return {key: value for key, value in run.to_dict().items() if key not in _OWN}


def _groups(run: Recipe) -> tuple[str, str]:
    return run.anchor_group, run.reference_group


def _refuse_other_measurement(one: Result, other: Result) -> None:
    """Raise unless two runs were measured with the same detector on the same images."""
    mine, theirs = one.metrics, other.metrics
    splits = {each.get("provenance", {}).get("split_sha256") for each in (mine, theirs)} - {None}
    same = len(splits) < 2 and all(mine[key] == theirs[key] for key in ("images", "detector_sha256"))
    keys = [(group, key) for group in _groups(one.run) for key in GAPS.values()]
    before, after = ([each["baseline"][group][key] or 0 for group, key in keys] for each in (mine, theirs))
    if not same or not np.allclose(before, after, rtol=0, atol=ROUNDING):
        what = f"{one.run.output_dir} and {other.run.output_dir} were measured on other data or another detector"
        raise FaapError(f"{what}: nothing can be compared. Use another --output_dir.")


def _is_blind(result: Result) -> bool:
    """Whether neither group is found, before or after; an earlier faap did not ask, and called it success."""
    before, after = (result.metrics[key] for key in ("baseline", "perturbed"))
    return any(all(is_dead(metrics[group]) for group in _groups(result.run)) for metrics in (before, after))


def _warnings(found: Sequence[Result]) -> list[str]:
    """Return what the measurements warn of, once each, with the runs it is about unless it is about all."""
    about: dict[str, list[str]] = {}
    for each in found:
        for text in each.metrics.get("warnings", [BLIND] * _is_blind(each)):
            about.setdefault(text, []).append(title(each.run))
    return [text if len(names) == len(found) else f"{'; '.join(names)}: {text}" for text, names in about.items()]


def _run_row(result: Result) -> dict[str, Any]:
    """One run's row of the comparison."""
    run, metrics, log = result
    groups, gap = _groups(run), metrics["gap"]["AP"]
    verdicts = {key: verdict_of(metrics["success"][key]) for key in HEADLINE}
    if _is_blind(result):
        verdicts = {key: UNKNOWN if verdict == MET else verdict for key, verdict in verdicts.items()}
    row = {"seed": run.seed, "run_dir": run.output_dir, "epoch": Run(run.output_dir).chosen(log)}
    row |= headline(metrics["perturbed"], *groups) | {"ap_gap_change": gap["change"], "ap_gap_ci95": gap["ci95"]}
    anchor, reference = (metrics["changes"][group] for group in groups)
    changes = {"gap": metrics["gap"], "anchor": anchor, "reference": reference}
    errors = {key: changes[whose][metric].get("standard_error") for key, (whose, metric) in HEADLINE.items()}
    row |= {"images_error": errors, "success": {k: v == MET for k, v in verdicts.items()}, "verdicts": verdicts}
    row |= {name: sum(epoch[name] for epoch in log) for name in ("seconds", "images")}
    return row | {"curves": curves_of(log, *groups, "train")}


def _recipe_row(runs: list[dict[str, Any]], baseline: Mapping[str, float | None]) -> dict[str, Any]:
    """What the runs of one recipe have in common; a run makes each image go through the detector once and back."""
    summary, verdicts = {}, {}
    for key in HEADLINE:
        spread = _spread([run[key] for run in runs])
        # the baseline is one number, so that a change varies over the seeds as what it changes
        summary[key] = spread | {"change": difference(baseline[key], spread["mean"])}
        # the runs have their images in common, so that a mean of many is no surer of them than one
        summary[key]["images_error"] = _spread([run["images_error"][key] for run in runs])["mean"]
        verdicts[key] = dict.fromkeys((MET, NOT_MET, UNKNOWN), 0) | Counter(run["verdicts"][key] for run in runs)
    success = {key: counts[MET] for key, counts in verdicts.items()}
    passes = dict.fromkeys(("forward", "backward"), runs[0]["images"])
    cost = {"seconds": _spread([run["seconds"] for run in runs]), "detector_passes": passes}
    return {"summary": summary, "success": success, "verdicts": verdicts, **cost, "runs": runs}


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and sample standard deviation of what is known."""
    known = [value for value in values if value is not None]
    return {"mean": fmean(known) if known else None, "std": stdev(known) if len(known) > 1 else None}
