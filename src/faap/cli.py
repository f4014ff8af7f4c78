"""The command line: one command a function, each a few lines that call the library; torch is loaded when needed."""

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.table import Table

import faap
from faap.errors import FaapError, nearest
from faap.process import outcome
from faap.recipes import find, recipe_names
from faap.runs import Run

if TYPE_CHECKING:
    from faap.config import Recipe
    from faap.data import Dataset

# The demo's scale: full schedules, fewer images an epoch than Promenade has.
DEMO: dict[str, Any] = {"output_dir": "faap_outputs/demo", "images_per_epoch": 960}

TITLES = {
    "data": "data and detector",
    "groups": "groups",
    "generator": "generator",
    "training": "training",
    "schedule": "schedules",
    "objective": "terms of the loss",
    "run": "the run",
}

# Fields of a recipe that say where in a data set what lies.
DATA = ("annotations", "images_dir", "group_field", "group_csv")

Given = argparse.Namespace
# What a command does with what was given; it may return an exit status.
Function = Callable[[Given, Console], int | None]
# Adds a command's arguments to a parser; the words of the command line may decide which there are.
Arguments = Callable[["Parser", Sequence[str]], None]
COMMANDS: dict[str, tuple[Function, Arguments]] = {}


class Parser(argparse.ArgumentParser):
    """Takes - for _ in a flag, and names the nearest known flag when one is unknown."""

    def error(self, message: str) -> NoReturn:
        raise FaapError(f"{message}\nSee {self.prog} --help.")

    def parse_exactly(self, words: Sequence[str]) -> Given:
        """Parse, and refuse what is left over."""
        found, rest = self.parse_known_args([_underscored(word) for word in words])
        if not rest:
            return found
        known = [option for action in self._actions for option in action.option_strings]
        flag = next((word.partition("=")[0] for word in rest if word.startswith("-")), None)
        if flag is None:
            raise FaapError(f"unexpected argument {rest[0]!r}. See {self.prog} --help.")
        raise FaapError(f"unknown flag {flag}.{nearest(flag, known)} See {self.prog} --help.")


def _underscored(word: str) -> str:
    flag, equals, value = word.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}" if word.startswith("--") else word


def command(arguments: Arguments) -> Callable[[Function], Function]:
    """Make a function the command of its name; its docstring is what `--help` says."""

    def register(function: Function) -> Function:
        COMMANDS[function.__name__] = function, arguments
        return function

    return register


def _add_field(place: argparse._ActionsContainer, field: "Field[Any]", default: Any) -> None:
    """Add a field of the recipe as a flag; what is not given is left to whoever knows better."""
    choices = field.metadata["choices"]
    kinds: dict[Any, str] = {bool: "{true,false}", int: "N", float: "X"}
    text = f" (default: {str(default).lower() if field.type is bool else default})" if default not in ("", None) else ""
    switch: dict[str, Any] = {"nargs": "?", "const": "true"} if field.type is bool else {}
    place.add_argument(
        f"--{field.name}",
        default=argparse.SUPPRESS,
        metavar="{%s}" % ",".join(choices) if choices else kinds.get(field.type, "TEXT"),  # noqa: UP031
        help=f"{field.metadata['help']}{text}".replace("%", "%%"),
        **switch,
    )


def _recipe_flags(parser: Parser, recipe: "Recipe") -> None:
    """Add every field as a flag, by subject, with the recipe's own values as defaults."""
    groups = {section: parser.add_argument_group(title) for section, title in TITLES.items()}
    values = recipe.to_dict()
    for field in fields(recipe):
        if field.name not in ("name", "description"):
            _add_field(groups[field.metadata["section"]], field, values[field.name])
    parser.usage = f"{parser.prog} {parser.usage or ''}[--FIELD VALUE ...]"


def _overrides(given: Given, *others: str) -> dict[str, Any]:
    """Return the fields of the recipe that were given; the other arguments of the command are none."""
    return {name: value for name, value in vars(given).items() if name not in others}


def _flags_of(parser: Parser, words: Sequence[str], names: Sequence[str]) -> None:
    """Add the flags of a recipe, with its own values as defaults, and of the terms that are typed with it."""
    for name in names:
        find(name)  # a wrong name is said before torch is loaded
    from faap.config import load_recipe, recipe_class

    peek = Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for flag in ("--terms", "--dataset_root", "--detr_checkpoint"):
        peek.add_argument(flag)
    typed = vars(peek.parse_known_args([_underscored(word) for word in words])[0])
    _recipe_flags(parser, load_recipe(*names, **typed) if len(names) == 1 else recipe_class(typed.get("terms", ""))())


def _first(words: Sequence[str]) -> list[str]:
    """Return the words before the first flag."""
    return list(takewhile(lambda word: not word.startswith("-"), words))


def _train_arguments(parser: Parser, words: Sequence[str]) -> None:
    parser.usage = "RECIPE "
    parser.add_argument("recipe", help=f"one of {', '.join(recipe_names())}, or a YAML file")
    _flags_of(parser, words, _first(words[:1]))


@command(_train_arguments)
def train(given: Given, console: Console) -> None:
    """Train a recipe in front of a frozen detector and measure it."""
    result = faap.train(_load(given.recipe, _overrides(given, "recipe")), console=console)
    _conclude(result.metrics, result.run_dir, console)


def _load(name: str, overrides: dict[str, Any]) -> "Recipe":
    if resume := overrides.get("resume"):
        from faap.training import recipe_to_resume

        return recipe_to_resume(Path(resume), name, overrides)
    from faap.config import load_recipe

    return load_recipe(name, **overrides)


def _demo_arguments(parser: Parser, words: Sequence[str]) -> None:
    _flags_of(parser, words, ["infonce_4th"])


@command(_demo_arguments)
def demo(given: Given, console: Console) -> None:
    """Build the embedded benchmark, train infonce_4th in front of its biased detector, measure both groups."""
    overrides = _overrides(given)
    recipe = _load("infonce_4th", overrides if "resume" in overrides else DEMO | overrides)
    result = faap.train(recipe, console=console)
    _conclude(result.metrics, result.run_dir, console)
    if recipe.detr_checkpoint == "promenade" and recipe.dataset_root == "promenade":
        console.print(_control(recipe.device), highlight=False)


def _control(device: str) -> str:
    """Measure the control detector's gap, so that the pictures' share of the baseline gap is seen."""
    from faap.distributed import resolve_device
    from faap.evaluation import detect, gap_with_error
    from faap.promenade import detector_dir

    split = faap.load_dataset("promenade").split("test")
    control = faap.load_detector(detector_dir("control"), resolve_device(device))
    gap = gap_with_error(split, detect(control, split))["AP"]
    return (
        f"The control (same detector, trained without the planted bias) has an AP gap of {gap['value']:.4f} "
        f"(standard error {gap['standard_error']:.4f}) on the same scenes: that much is the pictures'."
    )


def _data_flags(parser: Parser, *names: str) -> None:
    """Add the flags that say which data, in which groups; what is not given the data set or the run knows."""
    from faap.config import Recipe

    for field in fields(Recipe):
        if field.name in (*names, *DATA, "anchor_group", "reference_group"):
            _add_field(parser, field, None)


def _check_arguments(parser: Parser, words: Sequence[str]) -> None:
    parser.add_argument("dataset_root", help="the data set: a folder or file, or promenade")
    _data_flags(parser)
    parser.add_argument("--quick", action="store_true", help="do not decode images nor look for copies")
    parser.add_argument("--json", action="store_true", help="print JSON")


@command(_check_arguments)
def check(given: Given, console: Console) -> int:
    """Say what a data set holds and everything that is wrong with it; exit status 1 if anything is."""
    from faap.check import check as look
    from faap.check import print_check

    result = look(_dataset(vars(given)), images=not given.quick, console=None if given.json else console)
    if given.json:
        print(json.dumps(result, indent=1))
    else:
        print_check(result, console)
    return 1 if result["problems"] else 0


def _dataset(settings: Mapping[str, Any]) -> "Dataset":
    """Load the data set that some fields of a recipe describe; it knows its groups where they do not."""
    names = {"dataset_root": "root", "anchor_group": "anchor", "reference_group": "reference"}
    wanted = [name for name in (*DATA, "skip_bad", *names) if name in settings]
    return faap.load_dataset(**{names.get(name, name): settings[name] for name in wanted})


def _evaluate_arguments(parser: Parser, words: Sequence[str]) -> None:
    parser.add_argument("generator", help="a run directory, a generator's folder or file")
    _data_flags(parser, "dataset_root", "detr_checkpoint", "skip_bad")
    parser.add_argument("--split", default="test", help="train, val, test, or all of an undivided file (default: test)")
    parser.add_argument(
        "--output_dir", default="faap_outputs/evaluate", help="gets metrics.json and report.html (default: %(default)s)"
    )
    parser.add_argument("--absolute", action="store_true", help="judge by the study's absolute targets")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")


@command(_evaluate_arguments)
def evaluate(given: Given, console: Console) -> None:
    """Measure a trained generator in front of a detector, on one split of a data set.

    A run knows the data, the groups and the detector it was trained with; what is given takes their place.
    """
    from faap import distributed
    from faap.report.measure import measure

    settings = _trained_with(given)
    device = distributed.resolve_device(given.device)
    generator = faap.load_generator(given.generator).to(device)
    detector = faap.load_detector(settings["detr_checkpoint"], device)
    dataset = distributed.host_first(lambda: _dataset(settings))
    for said in dataset.usable(given.split):
        console.print(said, style="yellow", markup=False)
    metrics = measure(
        detector,
        generator,
        dataset,
        Run(given.output_dir),
        split=given.split,
        absolute=given.absolute,
        move_aside=True,
        console=console,
    )
    _conclude(metrics, Path(given.output_dir), console)


def _trained_with(given: Given) -> dict[str, Any]:
    """Return which data, groups and detector: what is typed, and of the rest what the run says.

    Another data set comes with its own groups and files, of which the run says nothing.
    """
    from faap.config import run_recipe

    names = (*DATA, "skip_bad", "dataset_root", "detr_checkpoint", "anchor_group", "reference_group")
    typed = {name: value for name, value in vars(given).items() if name in names}
    run, known = Run.of(given.generator), {}
    if run and run.config.is_file() and not {"dataset_root", "detr_checkpoint"} <= typed.keys():
        recipe = run_recipe(run, **typed)
        known = {name: getattr(recipe, name) for name in names}
        if "dataset_root" in typed:
            known = {"detr_checkpoint": recipe.detr_checkpoint}
        elif not (known["dataset_root"] == "promenade" or Path(known["dataset_root"]).exists()):
            raise FaapError(f"{run.config}: the data set {known['dataset_root']} is not there; see --dataset_root.")
    for name, what in (("dataset_root", "data set"), ("detr_checkpoint", "detector")):
        if name not in known | typed:
            raise FaapError(
                f"{given.generator}: does not say which {what} to measure it with. Give --{name}; promenade is the "
                "embedded benchmark's."
            )
    return known | typed


def _compare_arguments(parser: Parser, words: Sequence[str]) -> None:
    parser.usage = "RECIPE [RECIPE ...] "
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
    _flags_of(parser, words, [name for name in _first(words) if not os.path.isdir(name)])


@command(_compare_arguments)
def compare(given: Given, console: Console) -> None:
    """Train several recipes with several seeds, and lay them side by side."""
    overrides = _overrides(given, "recipes", "seeds", "jobs", "ray", "ablate")
    if "resume" in overrides:
        raise FaapError("--resume is not for compare: repeat the command, and what is unfinished goes on by itself.")
    from faap.compare import RayRunner, recipes_to_compare
    from faap.compare import compare as run_all
    from faap.report import comparison_table

    root = Path(overrides.pop("output_dir", "faap_outputs/compare"))
    chosen = recipes_to_compare(given.recipes, ablate=given.ablate, **overrides)
    runner = None if given.ray is None else RayRunner(given.ray)
    result = run_all(chosen, root, seeds=given.seeds, jobs=given.jobs, runner=runner, console=console)
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


def _bench_arguments(parser: Parser, words: Sequence[str]) -> None:
    parser.add_argument("--json", default="faap_outputs/bench.json", help="gets the figures (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--threads", type=_count, default=2, help="of torch, on the CPU (default: 2)")
    parser.add_argument("--repeats", type=_count, default=5, help="turns whose median is reported (default: 5)")


@command(_bench_arguments)
def bench(given: Given, console: Console) -> None:
    """Measure what faap costs beside the detector alone, as ratios."""
    from faap import bench as benchmark

    result = benchmark.bench(device=given.device, threads=given.threads, repeats=given.repeats, console=console)
    console.print(benchmark.table(result))
    console.print(str(benchmark.write(result, Path(given.json))), highlight=False, markup=False)


def _recipes_arguments(parser: Parser, words: Sequence[str]) -> None:
    parser.add_argument("name", nargs="?", help="a recipe's name or a YAML file; all of them if left out")
    parser.add_argument("--json", action="store_true", help="print JSON")


@command(_recipes_arguments)
def recipes(given: Given, console: Console) -> None:
    """List the recipes, or show one with its schedules."""
    if given.name is not None:
        find(given.name)
    from faap.config import load_recipe

    if given.name is None:
        known = {name: load_recipe(name).description for name in recipe_names()}
        table = Table("recipe", "what it is")
        for row in known.items():
            table.add_row(*row)
        print(json.dumps(known, indent=2)) if given.json else console.print(table)
        return
    recipe = load_recipe(given.name)
    table = Table("field", "value", "what it is", title=recipe.name)
    for field in fields(recipe):
        table.add_row(field.name, str(getattr(recipe, field.name)), str(field.metadata["help"]))
    shown = recipe.to_dict() | {"schedules": recipe.schedules()}
    print(json.dumps(shown, indent=2)) if given.json else console.print(table)


def _conclude(metrics: dict[str, Any], run_dir: Path, console: Console) -> None:
    from faap.report import summary

    console.print(summary(metrics))
    run = Run(run_dir)
    console.print(f"metrics: {run.metrics}\nreport:  {run.report}", highlight=False, markup=False)


def _usage() -> str:
    lines = [f"  {name:<10} {(function.__doc__ or '').splitlines()[0]}" for name, (function, _) in COMMANDS.items()]
    return "usage: faap COMMAND [ARGUMENTS]\n\n" + "\n".join(lines) + "\n\n'faap COMMAND --help' explains one."


def terminal() -> Console:
    """Return where to print; of several processes only the first does."""
    return Console(quiet=os.environ.get("RANK", "0") != "0" and os.environ.get("WORLD_SIZE", "1") != "1")


def run(name: str, words: Sequence[str], prog: str | None = None) -> int:
    """Run one command with its arguments; return the exit status."""
    function, arguments = COMMANDS[name]

    def body() -> int | None:
        parser = Parser(prog=prog or f"faap {name}", description=function.__doc__, allow_abbrev=False)
        arguments(parser, words)
        return function(parser.parse_exactly(words), terminal())

    return outcome(body)


def main(words: Sequence[str] | None = None) -> int:
    """Run `faap` with the given arguments, those of the process by default; return the exit status."""
    # what files are called, and what is written in them, may not be printable
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    name, *rest = list(sys.argv[1:] if words is None else words) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if name == "--version":
        print(f"faap {faap.__version__}")
        return 0
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}.{nearest(name, COMMANDS)} See faap --help.", file=sys.stderr)
        return 2
    return run(name, rest)
