"""Recipes side by side: every recipe with every seed, each an ordinary run, gathered into one comparison."""

import json
import math
import os
import statistics
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from faap.config import RECIPES, Recipe, load_recipe
from faap.data import load_dataset
from faap.errors import FaapError
from faap.evaluation import best_epoch
from faap.files import replacing
from faap.report import read_log, write_comparison
from faap.runs import FREE_FIELDS

RULE = (
    "Each run's epoch is chosen on the validation split: the smallest AP gap in size among the epochs whose reference "
    "AP is not below the baseline's there, and if there is none, the smallest loss of reference AP. The test split is "
    "read once, at the chosen epoch."
)
# by which AP or AR may differ from device to device, for the same detector and images
ROUNDING = 1e-3
Execute = Callable[[Recipe, Path, int], None]
# what ends the runs under way; called when the comparison is interrupted
RUNNING: set[Callable[[], object]] = set()
_BUSY: Counter[int] = Counter()  # runs on each GPU
_LOCK = threading.Lock()
KEYS = ("ap_gap", "ar_gap", "anchor_ap", "reference_ap")


def recipes_to_compare(names: Sequence[str], *, ablate: bool = False, **overrides: Any) -> list[Recipe]:
    """Load what is to be compared.

    Args:
        names: recipes by name, YAML files, or folders of YAML files.
        ablate: add to each recipe that comes with faap the variants in which one of its decisions is reverted.
        overrides: fields that take the place of every recipe's.

    Returns:
        The recipes, in the order given, each with the folder of variants after it.

    Raises:
        FaapError: if a recipe cannot be loaded, a folder is empty, a recipe has no ablation, or two share a name.
    """
    found: list[Recipe] = []
    for name in names:
        sources: list[str | Path] = [name]
        if Path(name).is_dir():
            sources = sorted(Path(name).glob("*.y*ml"))
        if ablate:
            variants = sorted((RECIPES / "ablations" / name).glob("*.yaml"))
            if not variants:
                known = sorted(folder.name for folder in (RECIPES / "ablations").iterdir())
                raise FaapError(f"{name}: has no ablation; there is one of {', '.join(known)}.")
            sources += variants
        if not sources:
            raise FaapError(f"{name}: no recipe (*.yaml) in this folder.")
        found += [load_recipe(source, **overrides) for source in sources]
    for name, count in Counter(recipe.name for recipe in found).items():
        if count > 1:
            raise FaapError(f"{count} recipes are named {name!r}; give each a name of its own.")
    return found


def compare(
    recipes: Sequence[Recipe],
    output_dir: str | Path,
    *,
    seeds: int = 1,
    jobs: int | None = None,
    ray: str | None = None,
    console: Console | None = None,
    execute: Execute | None = None,
) -> dict[str, Any]:
    """Train every recipe with every seed, and gather what came out.

    A run lies in `output_dir/RECIPE/seed_N`. One that is finished with the same settings is not repeated, one that was
    interrupted goes on from its last checkpoint, one with other settings is moved aside. A run that fails is reported
    and the others go on.

    Args:
        recipes: what to train; their `output_dir` and `resume` are set here, and each one's `seed` is its first.
        output_dir: gets the runs, their logs (`logs/RECIPE_N.log`), compare.json and compare.html.
        seeds: runs of each recipe, with consecutive seeds.
        jobs: runs at the same time, each a process with its share of the cores; by default one, with Ray as many as
            its cluster has room for.
        ray: a Ray cluster that makes the runs, as `faap.ray_backend.on_ray` takes it; None: they are made here.
        console: where to print; standard output by default.
        execute: how a run is made, given its recipe, its log file and its number of threads; not with Ray.

    Returns:
        The content of compare.json.

    Raises:
        FaapError: if no data set is there, the recipes or the runs differ in data, groups or detector, or there is no
            Ray.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise FaapError("faap compare starts its runs itself: not under torchrun or accelerate. See --jobs and --ray.")
    console = console or Console()
    root = Path(output_dir)
    first = recipes[0]
    places = ("dataset_root", "annotations", "images_dir", "group_field", "group_csv", "skip_bad", "detr_checkpoint")
    for field in (*places, "anchor_group", "reference_group"):
        for recipe in recipes:
            if (found := getattr(recipe, field)) != (wanted := getattr(first, field)):
                raise FaapError(f"{recipe.name} has {field} {found}, {first.name} has {wanted}; they must be the same.")
    # an error of all runs is one error, and said now
    load_dataset(**first.data())
    runs = [_placed(recipe, root, recipe.seed + number) for number in range(seeds) for recipe in recipes]
    waiting = [run for run in runs if not is_finished(run)]
    limit = f", {jobs or 1} at a time" if jobs or ray is None else ""
    console.print(
        f"{len(runs)} runs in {root}: {len(runs) - len(waiting)} finished before, {len(waiting)} to go{limit}; "
        f"logs in {root / 'logs'}",
        markup=False,
        highlight=False,
    )
    failed: dict[str, str] = {}
    threads = max(1, (os.cpu_count() or 1) // (jobs or 1))
    place: AbstractContextManager[Execute] = nullcontext(execute or run_in_process)
    if ray is not None and waiting:
        from faap.ray_backend import on_ray

        place = on_ray(ray, waiting, console)
    with place as make:
        pool = ThreadPoolExecutor(jobs or (1 if ray is None else max(1, len(waiting))))
        try:
            futures = {pool.submit(make, continued(run), _log(root, run), threads): run for run in waiting}
            for done in as_completed(futures):
                run = futures[done]
                name = f"{run.name}, seed {run.seed}"
                try:
                    done.result()
                    console.print(f"{name}: {_outcome(run)}", markup=False, highlight=False)
                except Exception as error:
                    failed[run.output_dir] = str(error).strip() or type(error).__name__
                    console.print(f"{name}: failed: {failed[run.output_dir]}", style="bold red", markup=False)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # or the next run would start where one is ended
            for end in tuple(RUNNING):
                end()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    comparison = gather(runs, failed)
    with replacing(root / "compare.json") as temporary:
        temporary.write_text(json.dumps(comparison, indent=1) + "\n", encoding="utf-8")
    write_comparison(comparison, root / "compare.html")
    return comparison


@contextmanager
def _gpu(recipe: Recipe) -> Iterator[dict[str, str]]:
    """Lend a run the GPU that has the fewest runs of this comparison; as environment variables of its process."""
    count = torch.cuda.device_count()
    if count < 2 or recipe.device not in ("auto", "cuda"):
        yield {}
        return
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    with _LOCK:
        number = min(range(count), key=lambda each: _BUSY[each])
        _BUSY[number] += 1
    try:
        yield {"CUDA_VISIBLE_DEVICES": names[number] if len(names) >= count else str(number)}
    finally:
        with _LOCK:
            _BUSY[number] -= 1


def run_in_process(recipe: Recipe, log: Path, threads: int) -> None:
    """Train a recipe in a process of its own, which ends when this one does; of several GPUs it gets one.

    Args:
        recipe: what to train.
        log: what the process prints is added to this file.
        threads: of the process, unless OMP_NUM_THREADS says otherwise.

    Raises:
        FaapError: if the process fails; the message is its last line.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # threads that wait spin a little, but do not starve those of another run
    environment = {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "10000", **os.environ}
    with _gpu(recipe) as gpu, log.open("a", encoding="utf-8") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "faap.compare"],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            env=environment | gpu,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(recipe.to_dict()).encode() + b"\n")
        process.stdin.flush()  # and left open: its end tells the process that nobody waits for it any more
        RUNNING.add(process.terminate)
        status = process.wait()
        RUNNING.discard(process.terminate)
        process.stdin.close()
    if status:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        said = lines[-1].removeprefix("error: ") if lines else "nothing was printed"
        raise FaapError(f"{said} (exit status {status}, log {log})")


def _child() -> int:
    """Train the recipe that the first line of standard input holds; give up when standard input ends."""
    import faap
    from faap.cli import run

    line = sys.stdin.readline()

    def watch() -> None:
        sys.stdin.read()
        os._exit(1)

    def train() -> None:
        faap.train(Recipe(**json.loads(line)))

    threading.Thread(target=watch, daemon=True).start()
    return run(train)


def _placed(recipe: Recipe, root: Path, seed: int) -> Recipe:
    return replace(recipe, seed=seed, output_dir=str(root / recipe.name / f"seed_{seed}"), resume="")


def _log(root: Path, run: Recipe) -> Path:
    return root / "logs" / f"{run.name}_{run.seed}.log"


def _is_same(run: Recipe) -> bool:
    """Whether what lies in the run's folder was trained with its settings."""
    try:
        stored = load_recipe(Path(run.output_dir) / "config.yaml").to_dict()
    except FaapError:
        return False
    return all(stored[key] == value for key, value in run.to_dict().items() if key not in FREE_FIELDS)


def is_finished(run: Recipe) -> bool:
    """Whether the run is in its folder, complete and with its settings."""
    folder = Path(run.output_dir)
    return all((folder / name).is_file() for name in ("metrics.json", "report.html")) and _is_same(run)


def continued(run: Recipe) -> Recipe:
    """Return the recipe with which an unfinished run goes on."""
    checkpoints = sorted((Path(run.output_dir) / "checkpoints").glob("epoch_*.pth"))
    return replace(run, resume=str(checkpoints[-1])) if checkpoints and _is_same(run) else run


def _outcome(run: Recipe) -> str:
    gap = _metrics(run)["gap"]["AP"]
    seconds = sum(row["seconds"] for row in read_log(Path(run.output_dir) / "train_log.jsonl"))
    return f"AP gap {gap['baseline']:.4f} → {gap['perturbed']:.4f}, {seconds:.0f} s"


def _metrics(run: Recipe) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((Path(run.output_dir) / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def _distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Return the largest difference of two baselines' AP and AR of any group."""
    if one.keys() != other.keys():
        return math.inf
    pairs = [(one[group][key] or 0, other[group][key] or 0) for group in one for key in ("AP", "AR100")]
    return float(max(abs(a - b) for a, b in pairs))


def gather(runs: Sequence[Recipe], failed: Mapping[str, str]) -> dict[str, Any]:
    """Read finished runs as one comparison.

    Args:
        runs: recipes with their run directories; those of one recipe share its name.
        failed: run directory → what went wrong; these runs are left out.

    Returns:
        The content of compare.json: split, anchor, reference, images, rule, detector_sha256, baseline and
        validation_baseline {ap_gap, ar_gap, anchor_ap, reference_ap}, shared (fields that no recipe differs in),
        recipes (each with summary, success, cost and runs with their curves) and failed.

    Raises:
        FaapError: if two runs have different baselines, so that nothing can be compared.
    """
    good = [run for run in runs if run.output_dir not in failed]
    by_name: dict[str, list[Recipe]] = {}
    for run in good:
        by_name.setdefault(run.name, []).append(run)
    comparison: dict[str, Any] = {
        "split": "test",
        "anchor": runs[0].anchor_group,
        "reference": runs[0].reference_group,
        "images": {},
        "rule": RULE,
        "detector_sha256": None,
        "baseline": dict.fromkeys(KEYS),
        "validation_baseline": dict.fromkeys(KEYS),
        "shared": {},
        "recipes": [],
        "failed": [{"recipe": r.name, "seed": r.seed, "error": failed[r.output_dir]} for r in runs if r not in good],
    }
    if not good:
        return comparison
    first = _metrics(good[0])
    for run in good:
        metrics = _metrics(run)
        same = all(metrics[key] == first[key] for key in ("images", "detector_sha256"))
        if not same or _distance(metrics["baseline"], first["baseline"]) > ROUNDING:
            raise FaapError(
                f"{run.output_dir} and {good[0].output_dir} were measured on other data or another detector: nothing "
                "can be compared. Use another --output_dir."
            )
    anchor, reference = list(first["baseline"])[:2]
    settings = [runs_of[0].to_dict() for runs_of in by_name.values()]
    own = {"name", "description", "seed", "output_dir", "resume", "device", "num_workers"}
    shared = {k: v for k, v in settings[0].items() if k not in own and all(each[k] == v for each in settings)}
    log = read_log(Path(good[0].output_dir) / "train_log.jsonl")
    baseline = _four(first["baseline"], anchor, reference)
    return comparison | {
        "images": first["images"],
        "detector_sha256": first["detector_sha256"],
        "baseline": baseline,
        "validation_baseline": _four(log[0]["validation"]["baseline"], anchor, reference),
        "shared": shared,
        "recipes": [
            {
                "name": name,
                "description": runs_of[0].description,
                "epochs": runs_of[0].epochs,
                "batch_size": runs_of[0].batch_size,
                "differs": {k: v for k, v in each.items() if k not in own and v != settings[0][k]},
                **_summary([_run(run, anchor, reference) for run in runs_of], baseline),
            }
            for (name, runs_of), each in zip(by_name.items(), settings, strict=True)
        ],
    }


def _four(metrics: Mapping[str, Mapping[str, float]], anchor: str, reference: str) -> dict[str, float | None]:
    return {
        "ap_gap": _minus(metrics[reference]["AP"], metrics[anchor]["AP"]),
        "ar_gap": _minus(metrics[reference]["AR100"], metrics[anchor]["AR100"]),
        "anchor_ap": metrics[anchor]["AP"],
        "reference_ap": metrics[reference]["AP"],
    }


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _run(run: Recipe, anchor: str, reference: str) -> dict[str, Any]:
    """One run's row of the comparison."""
    metrics, log = _metrics(run), read_log(Path(run.output_dir) / "train_log.jsonl")
    validation = [_four(row["validation"]["perturbed"], anchor, reference) for row in log]
    gap = metrics["gap"]["AP"]
    return {
        "seed": run.seed,
        "run_dir": run.output_dir,
        "epoch": best_epoch(log, reference),
        **_four(metrics["perturbed"], anchor, reference),
        "ap_gap_change": gap["change"],
        "ap_gap_ci95": gap["ci95"],
        "success": {key: metrics["success"][key]["met"] for key in KEYS},
        "seconds": sum(row["seconds"] for row in log),
        "images": sum(row["images"] for row in log),
        "curves": {
            "epoch": [row["epoch"] for row in log],
            "validation": {key: [_short(values[key]) for values in validation] for key in KEYS},
            "train": {name: [_short(row["train"].get(name)) for row in log] for name in log[0]["train"]},
        },
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _summary(runs: list[dict[str, Any]], baseline: Mapping[str, float | None]) -> dict[str, Any]:
    """What the runs of one recipe have in common; a run makes each image go through the detector once and back."""
    images = runs[0]["images"]
    return {
        "summary": {
            key: spread | {"change": _minus(spread["mean"], baseline[key]), "change_std": spread["std"]}
            for key, spread in ((key, _spread([run[key] for run in runs])) for key in KEYS)
        },
        "success": {key: sum(run["success"][key] for run in runs) for key in KEYS},
        "seconds": _spread([run["seconds"] for run in runs]),
        "detector_passes": {"forward": images, "backward": images},
        "runs": runs,
    }


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and sample standard deviation of what is known."""
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "std": statistics.stdev(known) if len(known) > 1 else None,
    }


if __name__ == "__main__":
    sys.exit(_child())
