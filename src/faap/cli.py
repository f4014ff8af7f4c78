"""The command line: one command a function, each a few lines that call the library."""

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from rich.console import Console
from rich.table import Table

import faap
from faap import distributed
from faap.config import Recipe, load_recipe, recipe_names
from faap.distributed import resolve_device
from faap.errors import FaapError, nearest

if TYPE_CHECKING:
    from faap.data import Dataset

# The demo's scale: full schedules, fewer images an epoch than Promenade has.
DEMO: dict[str, Any] = {"output_dir": "faap_outputs/demo", "images_per_epoch": 960}


class _Parser(argparse.ArgumentParser):
    """Names the nearest known flag or command when one is unknown."""

    def error(self, message: str) -> NoReturn:
        raise FaapError(f"{message}\nSee {self.prog} --help.")

    def parse_exactly(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse, and refuse what is left over."""
        found, rest = self.parse_known_args(arguments)
        if rest:
            known = [option for action in self._actions for option in action.option_strings]
            flag = next((word for word in rest if word.startswith("-")), None)
            if flag is None:
                raise FaapError(f"unexpected argument {rest[0]!r}. See {self.prog} --help.")
            raise FaapError(
                f"unknown flag {flag.split('=')[0]}.{nearest(flag.split('=')[0], known)} See {self.prog} --help."
            )
        return found


def _add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("fields of the recipe")
    for field in fields(Recipe):
        if field.name not in ("name", "description"):
            switch: dict[str, Any] = {"nargs": "?", "const": "true"} if field.type is bool else {}
            group.add_argument(
                *_flags(field),
                default=argparse.SUPPRESS,
                **switch,
                metavar="VALUE",
                help=str(field.metadata["help"]).replace("%", "%%"),
            )


def _flags(field: "Field[Any]") -> list[str]:
    """Return a field's flag; `--skip-bad` is the name of a switch elsewhere, so it is one here too."""
    return [f"--{field.name}", *(["--skip-bad"] if field.name == "skip_bad" else [])]


def _overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    names = {field.name for field in fields(Recipe)} - {"name"}
    return {key: value for key, value in vars(arguments).items() if key in names}


def _recipe(name: str, overrides: dict[str, Any]) -> Recipe:
    if resume := overrides.get("resume"):
        from faap.training import recipe_to_resume

        return recipe_to_resume(Path(resume), name, overrides)
    return load_recipe(name, **overrides)


def train(arguments: Sequence[str], console: Console, prog: str = "faap train", recipe: str | None = None) -> None:
    """Train a recipe in front of a frozen detector and measure it."""
    parser = _Parser(prog=prog, description=train.__doc__, allow_abbrev=False)
    if recipe is None:
        parser.add_argument("recipe", help=f"one of {', '.join(recipe_names())}, or a YAML file")
    _add_recipe_flags(parser)
    given = parser.parse_exactly(arguments)
    result = faap.train(_recipe(recipe or given.recipe, _overrides(given)), console=console)
    _conclude(result.metrics, result.run_dir, console)


def demo(arguments: Sequence[str], console: Console) -> None:
    """Build the embedded benchmark, train infonce_4th in front of its biased detector, measure both groups."""
    parser = _Parser(prog="faap demo", description=demo.__doc__, allow_abbrev=False)
    _add_recipe_flags(parser)
    given = _overrides(parser.parse_exactly(arguments))
    recipe = _recipe("infonce_4th", given if "resume" in given else DEMO | given)
    result = faap.train(recipe, console=console)
    _conclude(result.metrics, result.run_dir, console)
    if recipe.detr_checkpoint == "promenade" and recipe.dataset_root == "promenade":
        console.print(_control(recipe.device), highlight=False)


def _control(device: str) -> str:
    """Measure the control detector's gap, so that the pictures' share of the baseline gap is seen."""
    from faap.evaluation import detect, gap_with_error
    from faap.promenade import detector_dir

    split = faap.load_dataset("promenade").split("test")
    control = faap.load_detector(detector_dir("control"), resolve_device(device))
    gap = gap_with_error(split, detect(control, split))["AP"]
    return (
        f"The control (same detector, trained without the planted bias) has an AP gap of {gap['value']:.4f} "
        f"(standard error {gap['standard_error']:.4f}) on the same scenes: that much is the pictures'."
    )


_DATA_FIELDS = ("dataset_root", "annotations", "images_dir", "group_field", "group_csv")


def _add_flags(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add flags for some fields of the recipe, with their defaults."""
    for field in fields(Recipe):
        if field.name in names:
            text = str(field.metadata["help"]).replace("%", "%%")
            parser.add_argument(f"--{field.name}", default=field.default, metavar="VALUE", help=text)
    parser.add_argument("--anchor_group", help="the disadvantaged group (default: the data set's; mostly female)")
    parser.add_argument("--reference_group", help="the group it is measured against (default: mostly male)")


def _dataset(given: argparse.Namespace, skip_bad: bool) -> "Dataset":
    options = {name: getattr(given, name) for name in _DATA_FIELDS}
    root = options.pop("dataset_root")
    groups = {"anchor": given.anchor_group, "reference": given.reference_group}
    return faap.load_dataset(root, **groups, **options, skip_bad=skip_bad)


def check(arguments: Sequence[str], console: Console) -> int:
    """Say what a data set holds and everything that is wrong with it; exit status 1 if anything is."""
    parser = _Parser(prog="faap check", description=check.__doc__, allow_abbrev=False)
    parser.add_argument("dataset_root", help="the data set: a folder or file, or promenade")
    _add_flags(parser, _DATA_FIELDS[1:])
    parser.add_argument("--quick", action="store_true", help="do not decode images nor look for copies")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_exactly(arguments)
    from faap.check import check as look
    from faap.check import print_check

    result = look(_dataset(given, False), images=not given.quick, console=None if given.json else console)
    if given.json:
        print(json.dumps(result, indent=1))
    else:
        print_check(result, console)
    return 1 if result["problems"] else 0


def evaluate(arguments: Sequence[str], console: Console) -> None:
    """Measure a trained generator in front of a detector, on one split of a data set."""
    parser = _Parser(prog="faap evaluate", description=evaluate.__doc__, allow_abbrev=False)
    parser.add_argument("generator", help="a run directory, a generator's folder or file")
    _add_flags(parser, ("detr_checkpoint", *_DATA_FIELDS))
    parser.add_argument("--skip-bad", "--skip_bad", action="store_true", help="go on without broken records")
    parser.add_argument("--split", default="test", help="train, val, test, or all of an undivided file (default: test)")
    parser.add_argument("--output_dir", default="faap_outputs/evaluate", help="gets metrics.json and report.html")
    parser.add_argument("--absolute", action="store_true", help="judge by the study's absolute targets")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    given = parser.parse_exactly(arguments)
    from faap.data import refuse
    from faap.training import measure

    device = resolve_device(given.device)
    generator = faap.load_generator(given.generator).to(device)
    detector = faap.load_detector(given.detr_checkpoint, device)
    dataset = distributed.host_first(lambda: _dataset(given, given.skip_bad))
    if dataset.note:
        console.print(dataset.note, style="yellow")
    problems = dataset.check()
    if not given.skip_bad:
        refuse(problems)
    elif problems:
        console.print(f"{len(problems)} broken records are left out; `faap check` lists them.", style="yellow")
    run_dir = Path(given.output_dir)
    if distributed.rank() == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
    metrics = measure(detector, generator, dataset, run_dir, split=given.split, absolute=given.absolute)
    _conclude(metrics, run_dir, console)


def compare(arguments: Sequence[str], console: Console) -> None:
    """Train several recipes with several seeds, and lay them side by side."""
    parser = _Parser(prog="faap compare", description=compare.__doc__, allow_abbrev=False)
    parser.add_argument("recipes", nargs="+", help="names, YAML files, or folders of them")
    parser.add_argument("--seeds", type=_count, default=1, help="runs of each recipe, with seeds from --seed on")
    parser.add_argument("--jobs", type=_count, help="runs at the same time; they share the cores (default: 1)")
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="hand the runs to a Ray cluster: auto, HOST:PORT or ray://HOST:PORT; if left out, one found or new",
    )
    parser.add_argument("--ablate", action="store_true", help="add the variants that revert one decision each")
    _add_recipe_flags(parser)
    given = parser.parse_exactly(arguments)
    overrides = _overrides(given)
    if "resume" in overrides:
        raise FaapError("--resume is not for compare: repeat the command, and what is unfinished goes on by itself.")
    from faap.compare import compare as run_all
    from faap.compare import recipes_to_compare
    from faap.report import comparison_table

    root = Path(overrides.pop("output_dir", "faap_outputs/compare"))
    chosen = recipes_to_compare(given.recipes, ablate=given.ablate, **overrides)
    result = run_all(chosen, root, seeds=given.seeds, jobs=given.jobs, ray=given.ray, console=console)
    console.print(comparison_table(result, console.width))
    places = f"numbers: {root / 'compare.json'}\nreport:  {root / 'compare.html'}"
    console.print(places, highlight=False, markup=False)
    if result["failed"]:
        count = len(result["failed"])
        raise FaapError(f"{count} run{'s' if count > 1 else ''} failed; repeat the command to try again.")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def bench(arguments: Sequence[str], console: Console) -> None:
    """Measure what faap costs beside the detector alone, as ratios."""
    parser = _Parser(prog="faap bench", description=bench.__doc__, allow_abbrev=False)
    parser.add_argument("--json", default="faap_outputs/bench.json", help="gets the figures, with two plots beside it")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=_count, default=2, help="of torch, on the CPU (default: 2)")
    parser.add_argument("--repeats", type=_count, default=5, help="turns whose median is reported (default: 5)")
    given = parser.parse_exactly(arguments)
    from faap import bench as benchmark

    result = benchmark.bench(device=given.device, threads=given.threads, repeats=given.repeats, console=console)
    console.print(benchmark.table(result))
    for path in benchmark.write(result, Path(given.json)):
        console.print(str(path), highlight=False, markup=False)


def recipes(arguments: Sequence[str], console: Console) -> None:
    """List the recipes, or show one with its schedules."""
    parser = _Parser(prog="faap recipes", description=recipes.__doc__, allow_abbrev=False)
    parser.add_argument("name", nargs="?", help="a recipe's name or a YAML file; all of them if left out")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_exactly(arguments)
    if given.name is None:
        known = {name: load_recipe(name).description for name in recipe_names()}
        if given.json:
            print(json.dumps(known, indent=2))
            return
        table = Table("recipe", "what it is")
        for name, description in known.items():
            table.add_row(name, description)
        console.print(table)
        return
    recipe = load_recipe(given.name)
    if given.json:
        print(json.dumps(recipe.to_dict() | {"schedules": recipe.schedules()}, indent=2))
        return
    table = Table("field", "value", "what it is", title=recipe.name)
    for field in fields(recipe):
        table.add_row(field.name, str(getattr(recipe, field.name)), str(field.metadata["help"]))
    console.print(table)


def _conclude(metrics: dict[str, Any], run_dir: Path, console: Console) -> None:
    from faap.report import summary

    console.print(summary(metrics))
    console.print(
        f"metrics: {run_dir / 'metrics.json'}\nreport:  {run_dir / 'report.html'}", highlight=False, markup=False
    )


COMMANDS: dict[str, Callable[[Sequence[str], Console], int | None]] = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "check": check,
    "bench": bench,
    "recipes": recipes,
}


def _usage() -> str:
    lines = [f"  {name:<10} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "usage: faap COMMAND [ARGUMENTS]\n\n" + "\n".join(lines) + "\n\n'faap COMMAND --help' explains one."


def terminal() -> Console:
    """Return where to print; of several processes only the first does."""
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    return Console(quiet=not alone and os.environ.get("RANK", "0") != "0")


def run(command: Callable[[], int | None]) -> int:
    """Run a command; print what the user can mend as one error, without a traceback, and return the exit status."""
    try:
        status = command() or 0
        distributed.shutdown()  # not after an error: the other processes may be waiting for this one to speak
        return status
    except (FaapError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as error:
        said = str(error).partition(". ")[0]
        print(f"error: {said}. Use a smaller --batch_size or smaller images, or --device cpu.", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not distributed.is_loss_of_others(error):
            raise
        print("error: another process has ended; what it printed says why.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `faap` with the given arguments, those of the process by default; return the exit status."""
    # what files are called, and what is written in them, may not be printable
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if words[0] == "--version":
        print(f"faap {faap.__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}.{nearest(name, COMMANDS)} See faap --help.", file=sys.stderr)
        return 2
    return run(lambda: COMMANDS[name](rest, terminal()))
