"""What is to be run, in which order, and what is said of it."""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from faap.compare.gather import gather, outcome, title
from faap.compare.local import LocalRunner
from faap.compare.standing import Standing, standing
from faap.config import RECIPES, Recipe, fields_of, load_recipe
from faap.data import load_dataset
from faap.detectors import load_detector
from faap.errors import FaapError
from faap.files import write_text
from faap.process import Terminal
from faap.report import write_comparison
from faap.runs import Run, writing
from faap.training.checkpoints import origin_of
from faap.training.stopping import Stopping

_OURS = ("logs", "compare.json", "compare.html")  # lie beside the recipes' folders


def recipes_to_compare(names: Sequence[str], *, ablate: bool = False, **overrides: Any) -> list[Recipe]:
    """Load what is to be compared.

    Args:
        names: recipes by name, YAML files, or folders of YAML files.
        ablate: add to each recipe that comes with faap the variants in which one of its decisions is reverted.
        overrides: fields that take the place of every recipe's, but for what a variant reverts.

    Returns:
        The recipes, in the order given, each with the folder of variants after it.

    Raises:
        FaapError: if a recipe cannot be loaded, a folder is empty, a recipe has no ablation, or two share a name.
    """
    ablations = {folder.name: sorted(folder.glob("*.yaml")) for folder in (RECIPES / "ablations").iterdir()}
    found: list[Recipe] = []
    for name in names:
        if ablate and name not in ablations:
            raise FaapError(f"{name}: has no ablation; there is one of {', '.join(sorted(ablations))}.")
        sources: Sequence[str | Path] = sorted(Path(name).glob("*.y*ml")) if Path(name).is_dir() else [name]
        if not sources:
            raise FaapError(f"{name}: no recipe (*.yaml) in this folder.")
        found += [load_recipe(source, **overrides) for source in sources]
        for variant in ablations[name] if ablate else []:
            reverted = yaml.safe_load(variant.read_text())
            found.append(load_recipe(variant, **{k: v for k, v in overrides.items() if k not in reverted}))
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
    runner: LocalRunner | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train every recipe with every seed, and gather what came out.

    A run lies in `output_dir/RECIPE/seed_N`. One that is finished with the same settings is not repeated, one that was
    interrupted goes on from its last checkpoint that can be read, one with other settings, data, detector or code is
    moved aside. A run that fails is reported and the others go on.

    Args:
        recipes: what to train; their `output_dir` and `resume` are set here, and each one's `seed` is its first.
        output_dir: gets the runs, their logs (`logs/RECIPE_N.log`), compare.json and compare.html.
        seeds: runs of each recipe, with consecutive seeds.
        jobs: runs at the same time; by default what the runner says.
        runner: where the runs are made; by default a `LocalRunner`, in processes of this machine.
        console: where to print; standard output by default.

    Returns:
        The content of compare.json.

    Raises:
        FaapError: if no data set is there, the recipes or the runs differ in data, groups or detector, the folder
            cannot be written to, or the runner cannot be used.
    """
    if (os.environ.get("WORLD_SIZE") or "1") != "1":
        raise FaapError("faap compare starts its runs itself: not under torchrun or accelerate. See --jobs and --ray.")
    console, runner, root = console or Terminal(), runner or LocalRunner(), Path(output_dir)
    runs = [_placed(recipe, root, recipe.seed + number) for number in range(seeds) for recipe in recipes]
    _refuse(runs)
    # an error of all runs is one error, and said now
    dataset, detector = load_dataset(**runs[0].data()), load_detector(runs[0].detr_checkpoint)
    test, train = (dataset.split(name).fingerprint() for name in ("test", "train"))
    origin = partial(origin_of, data_sha256=train, detector_file_sha256=detector.file_sha256)
    with writing(root):
        (root / "logs").mkdir(parents=True, exist_ok=True)
    say = partial(console.print, markup=False, highlight=False)
    states = [Standing(run) if run.fresh else standing(run, test, origin(run)) for run in runs]
    for each in states:
        if each.note:
            say(f"{title(each.recipe)}: {each.note}", style="yellow")
    waiting = [each.recipe for each in states if not each.finished]
    at_once = jobs or runner.jobs or max(1, len(waiting))
    done = f"{len(runs) - len(waiting)} finished before, {len(waiting)} to go, {at_once} at a time"
    say(f"{len(runs)} runs in {root}: {done}; logs in {root / 'logs'}")
    threads = max(1, torch.get_num_threads() // (jobs or 1))  # torch knows which cores are ours, under Slurm
    with runner.open(waiting, console) if waiting else nullcontext():
        failed = _make(waiting, runner, root / "logs", at_once, threads, say)
    comparison = gather(runs, failed)
    write_text(root / "compare.json", json.dumps(comparison, indent=1) + "\n")
    write_comparison(comparison, root / "compare.html")
    return comparison


def _placed(recipe: Recipe, root: Path, seed: int) -> Recipe:
    name = recipe.name
    if Path(name).name != name or name == ".." or name in _OURS:
        raise FaapError(f"a recipe is named {name!r}; its runs' folder has that name, and cannot. Give it another.")
    return replace(recipe, seed=seed, output_dir=str(root / name / f"seed_{seed}"), resume="auto")


def _refuse(runs: Sequence[Recipe]) -> None:
    """Raise if there is nothing to run, or what would be run cannot be compared."""
    if not runs:
        raise FaapError("nothing to compare: it takes a recipe and a seed.")
    first = runs[0]
    for field, run in product(fields_of("data", "groups"), runs):
        if (value := getattr(run, field)) != (wanted := getattr(first, field)):
            raise FaapError(f"{run.name} has {field} {value}, {first.name} has {wanted}; they must be the same.")


def _make(
    runs: Sequence[Recipe], runner: LocalRunner, logs: Path, at_once: int, threads: int, say: Callable[..., None]
) -> dict[str, str]:
    """Make runs, some at a time; return what went wrong, by their folders."""
    failed: dict[str, str] = {}

    def make(run: Recipe) -> None:
        if run.fresh:  # once: who makes the run again, as Ray does where a worker is lost, is to go on
            with (folder := Run(run.output_dir)).locked():
                folder.move_aside()
        runner.train(replace(run, fresh=False), logs / f"{run.name}_{run.seed}.log", threads)

    with Stopping().listening(), ThreadPoolExecutor(at_once) as pool:
        try:
            made = {pool.submit(make, run): run for run in runs}
            for done in as_completed(made):
                run = made[done]
                try:
                    done.result()
                    say(f"{title(run)}: {outcome(run)}")
                except Exception as error:
                    failed[run.output_dir] = str(error).strip() or type(error).__name__
                    say(f"{title(run)}: failed: {failed[run.output_dir]}", style="bold red")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # or the next run would start where one is ended
            runner.end()
            raise
    return failed
