"""The command line: one command a function, each a few lines that call the library; torch is loaded when needed."""

import argparse
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import Field, fields
from functools import partial
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.table import Column, Table

import faap
from faap.errors import FaapError, nearest
from faap.files import refuse_device, write_text
from faap.process import Terminal, outcome
from faap.recipes import find, recipe_names, variants
from faap.runs import AUTO, Run, cost_of, writing
from faap.settings import SECTIONS, visible

if TYPE_CHECKING:
    from faap.config import Recipe
    from faap.detectors import FrozenDetector

# The demo's scale: what two cores do in some minutes.
SHORT = {"epochs": 8, "images_per_epoch": 3072, "batch_size": 8, "ema": 0.997, "lr_g": 2.5e-3}
FEW = {"images_per_epoch": 960}  # all of a published recipe's schedules

# What the sections of a recipe are called in --help, where the run comes last.
_CALLED = {"data": "data and detector", "schedule": "schedules", "objective": "terms of the loss", "run": "the run"}
TITLES = {section: _CALLED.get(section, section) for section in (*SECTIONS[1:], SECTIONS[0])}


class Parser(argparse.ArgumentParser):
    """Takes - for _ in a flag, and names the nearest known flag when one is unknown.

    Args:
        words: the command line after the command's name; they may decide which arguments there are.
    """

    def __init__(self, words: Sequence[str], **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self.words = [_underscored(word) for word in words]

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments:.*?(--\w+)", message)
        hint = nearest(unknown[1], self._option_string_actions) if unknown else ""
        raise FaapError(f"{message}.{hint}\nSee {self.prog} --help.")

    def typed(self, *flags: str) -> dict[str, Any]:
        """Return what is typed of some flags, before all are known."""
        peek = Parser(self.words, prog=self.prog, add_help=False, argument_default=argparse.SUPPRESS)
        for flag in flags:
            peek.add_argument(flag)
        return vars(peek.parse_known_args(self.words)[0])

    def given(self) -> dict[str, Any]:
        """Parse; what is not given is left to whoever knows better."""
        return vars(self.parse_args(self.words))


def _underscored(word: str) -> str:
    flag, equals, value = word.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}" if word.startswith("--") else word


def _add_field(place: argparse._ActionsContainer, field: "Field[Any]", default: Any) -> None:
    """Add a field of the recipe as a flag."""
    choices = field.metadata["choices"]
    kinds: dict[Any, str] = {bool: "{true,false}", int: "N", float: "X"}
    text = f" (default: {str(default).lower() if field.type is bool else default})" if default not in ("", None) else ""
    switch: dict[str, Any] = {"nargs": "?", "const": "true"} if field.type is bool else {}
    place.add_argument(
        f"--{field.name}",
        default=argparse.SUPPRESS,
        metavar=f"{{{','.join(choices)}}}" if choices else kinds.get(field.type, "TEXT"),
        help=f"{field.metadata['help']}{text}".replace("%", "%%"),
        **switch,
    )


def _recipe_flags(parser: Parser, usage: str, names: Sequence[str], own: Mapping[str, Any] = {}) -> None:
    """Add every field as a flag, by subject: those of the recipes, and of the terms that are typed with them.

    Args:
        parser: gets them.
        usage: what comes before the flags.
        names: of the recipes; the own values of a single one are the defaults.
        own: defaults of the command.
    """
    for name in names:
        find(name)  # a wrong name is said before torch is loaded
    from faap.config import load_recipe, recipe_class

    typed = parser.typed("--terms", "--dataset_root", "--detr_checkpoint")
    recipe = load_recipe(*names, **typed) if len(names) == 1 else recipe_class(typed.get("terms", ""))()
    groups = {section: parser.add_argument_group(title) for section, title in TITLES.items()}
    values = {**recipe.to_dict(), **own}
    for field in fields(recipe):
        if field.name not in ("name", "description"):
            _add_field(groups[field.metadata["section"]], field, values[field.name])
    parser.usage = f"{parser.prog} {usage}[--FIELD VALUE ...]"


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


_COUNT: dict[str, Any] = {"type": _count, "metavar": "N"}
# arguments of several commands
_SHARED: dict[str, dict[str, Any]] = {
    "generator": {"help": "a run directory, a generator's folder or file, or promenade"},
    "--epsilon": {"type": float, "metavar": "X", "help": "in place of the generator's own bound"},
    "--device": {"default": "auto", "help": "auto, cpu, cuda or cuda:N (default: auto)"},
    "--split": {"default": "test", "help": "train, val, test, or all of an undivided file (default: test)"},
    "--i_know": {"action": "store_true", "help": "measure one more generator of a run on the test split"},
    "--num_workers": {"type": int, "default": 0, "metavar": "N", "help": "processes that load images (default: 0)"},
}


def _shared(parser: Parser, *names: str) -> None:
    for name in names:
        parser.add_argument(name, **_SHARED[name])


def _say(console: Console, text: object, style: str = "") -> None:
    """Print what holds paths, which are not broken over lines."""
    console.print(text, style=style, highlight=False, soft_wrap=True)


def _place(given: Mapping[str, Any]) -> Path:
    """Return the output folder; one that cannot be made or written to is refused before anything is measured."""
    return _writable(Path(given["output_dir"]), "--output_dir")


def _writable(folder: Path, flag: str) -> Path:
    with writing(folder, flag):
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    return folder


def _recipes_in(words: Sequence[str]) -> list[str]:
    """Return the recipes of a command line: what stands before its flags, or else what is one among them."""
    known = (*recipe_names(), *variants())
    files = [word for word in words if word.endswith((".yaml", ".yml")) and os.path.isfile(word)]
    first = list(takewhile(lambda word: not word.startswith("-"), words))
    return first or [word for word in words if word in known or word in files]


def train(parser: Parser, console: Console) -> None:
    """Train a recipe in front of a frozen detector and measure it."""
    parser.add_argument("recipe", help=f"one of {', '.join(recipe_names())}, or a YAML file")
    _recipe_flags(parser, "RECIPE ", _recipes_in(parser.words)[:1])
    given = parser.given()
    _train(given.pop("recipe"), given, console)


def _beside_log(recipe: "Recipe", console: Console) -> Console:
    """Return where to speak: not where the log, for machines, is all that standard output gets."""
    return Terminal(stderr=True, quiet=console.quiet) if recipe.log_format == "json" else console


def _train(name: str, overrides: dict[str, Any], console: Console, beside: Sequence[str] = ()) -> "Recipe":
    if (resume := overrides.get("resume", "auto")) not in AUTO:
        from faap.training import recipe_to_resume

        recipe = recipe_to_resume(Path(resume), name, overrides)
    else:
        recipe = faap.load_recipe(name, **overrides)
    console = _beside_log(recipe, console)
    beside = beside if recipe.detr_checkpoint == recipe.dataset_root == "promenade" else ()
    result = faap.train(recipe, beside=beside, console=console)
    _conclude(result.metrics, Run(result.run_dir), console)
    return recipe


def status(parser: Parser, console: Console) -> None:
    """Say how far a training is, from outside: it may be under way, in another process or on another machine."""
    parser.add_argument("run", help="its folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.given()
    found = Run(given["run"]).read_status()
    told = found | {"seconds_left": found.get("seconds_left", "not known yet")}
    text = "\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in told.items())
    print(json.dumps(found, indent=2)) if given["json"] else _say(console, text)


def demo(parser: Parser, console: Console) -> None:
    """Build the embedded benchmark, train a recipe in front of its biased detector, and measure what came out."""
    name = parser.typed("--recipe").get("recipe", "equal")
    parser.add_argument("--recipe", metavar="NAME", help="recipe to train (default: equal)")
    scale: dict[str, Any] = SHORT if name == "equal" else FEW
    scale = {"output_dir": "faap_outputs/demo" if name == "equal" else f"faap_outputs/demo_{Path(name).stem}"} | scale
    _recipe_flags(parser, "", [name], scale)
    given = parser.given()
    del given["recipe"]
    recipe = _train(name, scale | given if given.get("resume", "auto") in AUTO else given, console, ["promenade"])
    if recipe.detr_checkpoint == recipe.dataset_root == "promenade":
        from faap.distributed import resolve_device
        from faap.evaluation import MetricFrame, detect
        from faap.promenade import detector_dir
        from faap.report.words import interval, number

        # so that the pictures' share of the baseline gap is seen
        data = faap.load_dataset("promenade", scenes=recipe.scenes)
        split = data.as_split("test", data.unchecked("test"))  # the training has read and checked all of them
        control = faap.load_detector(detector_dir("control"), resolve_device(recipe.device))
        gap = MetricFrame(split, detect(control, split), metrics=["AP"]).difference[split.anchor]["AP"]
        said = f"an AP gap of {number(gap['value'])} (95 % interval {interval(gap['ci95'])}) on the same scenes"
        said = f"The control (same detector, trained without the planted bias) has {said}: that much is the pictures'."
        _beside_log(recipe, console).print(said, highlight=False)


def _data_flags(parser: Parser, *others: str) -> None:
    """Add the flags that say which data, in which groups; what is not given the data set or the run knows."""
    from faap.config import Recipe, fields_of

    for name in fields_of("data", "groups"):
        if name not in others:
            _add_field(parser, Recipe.__dataclass_fields__[name], None)


def check(parser: Parser, console: Console) -> int:
    """Say what a data set holds and everything that is wrong with it; exit status 1 if anything is."""
    parser.add_argument("dataset_root", help="the data set: a folder or file, or promenade")
    _data_flags(parser, "dataset_root", "detr_checkpoint", "skip_bad")
    parser.add_argument("--quick", action="store_true", help="do not decode images nor look for copies")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.given()
    from faap.check import check as look
    from faap.check import print_check
    from faap.config import data_arguments

    dataset = faap.load_dataset(**data_arguments(given))
    result = look(dataset, images=not given["quick"], console=None if given["json"] else console)
    print(json.dumps(result, indent=1)) if given["json"] else print_check(result, console)
    return 1 if result["problems"] else 0


def evaluate(parser: Parser, console: Console) -> None:
    """Measure a trained generator in front of a detector, on one split of a data set.

    A run knows the data, the groups and the detector it was trained with; what is given takes their place.
    """
    _shared(parser, "generator", "--epsilon", "--device", "--split", "--i_know", "--num_workers")
    _data_flags(parser)
    here, kept = "faap_outputs/evaluate", "gets metrics.json and report.html (default: %(default)s)"
    parser.add_argument("--output_dir", default=here, help=kept)
    parser.add_argument("--jpeg", type=_count, metavar="QUALITY", help="as JPEG files of this quality, 1 to 100")
    parser.add_argument("--resize", type=float, metavar="X", help="resized by this factor, and back")
    parser.add_argument("--shift", help="shifted by so many pixels to the right and down", **_COUNT)
    parser.add_argument("--absolute", action="store_true", help="judge by the study's absolute targets")
    given = parser.given()
    from faap import distributed
    from faap.config import data_arguments
    from faap.evaluation.arrival import Arrival
    from faap.report.measure import measure, refuse_choice, run_of

    device = distributed.resolve_device(given["device"])
    generator = faap.load_generator(given["generator"], epsilon=given["epsilon"]).to(device)
    settings, arrival = _trained_with(given), Arrival(given["jpeg"], given["resize"], given["shift"])
    detector = faap.load_detector(settings["detr_checkpoint"], device)
    dataset = distributed.host_first(lambda: faap.load_dataset(**data_arguments(settings)))
    for said in dataset.usable(given["split"]):
        console.print(said, style="yellow")
    trained_in = run_of(given["generator"])
    if not given["i_know"]:
        refuse_choice(trained_in, dataset.split(given["split"]), generator)
    run, how = Run(_place(given)), {name: given[name] for name in ("split", "absolute", "num_workers")}
    how |= {"arrival": arrival, "move_aside": True, "trained_in": trained_in, "console": console}
    _conclude(measure(detector, generator, dataset, run, **how), run, console)


def apply(parser: Parser, console: Console) -> None:
    """Perturb pictures, folders of them, and videos with a trained generator, and say what of that arrives."""
    _shared(parser, "generator", "--epsilon", "--device")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="pictures, folders of them, videos")
    parser.add_argument("--out", default="faap_outputs/applied", help="folder for the results (default: %(default)s)")
    parser.add_argument("--jpeg", type=_count, metavar="QUALITY", help="write JPEG of this quality, 1 to 100, not PNG")
    what = "the detector that they are for, which says how it resizes images (default: the run's)"
    parser.add_argument("--detr_checkpoint", metavar="TEXT", help=what)
    beside = "draw what the detector finds before and after, side by side"
    parser.add_argument("--draw", action="store_true", help=beside)
    parser.add_argument("--score", type=float, default=0.5, metavar="X", help="of what is drawn (default: 0.5)")
    given = parser.given()
    from faap import distributed
    from faap.deploy import OWN_SIZE, Form, NotAllMade, apply_files

    device = distributed.resolve_device(given["device"])
    generator = faap.load_generator(given["generator"], epsilon=given["epsilon"]).to(device)
    detector = _detector_behind(given, needed=given["draw"], device=device)
    if detector is None:
        console.print("No detector is known: pictures are perturbed at their own size.", style="yellow")
    draw, seen = detector if given["draw"] else None, detector.preprocessing if detector else OWN_SIZE
    form = Form(given["jpeg"], seen, draw, given["score"])
    try:
        _say_applied(apply_files(generator, given["inputs"], given["out"], form, console=console), given, console)
    except NotAllMade as error:
        if error.made:
            _say_applied(error.made, given, console)
        raise


def _say_applied(made: Sequence[Mapping[str, Any]], given: Mapping[str, Any], console: Console) -> None:
    from faap.report.words import share

    for row in made:
        for note in row.get("notes", ()):  # an earlier faap had none
            _say(console, f"{row['source']}: {note}", "yellow")
    said = f"{len(made)} file{'s' if len(made) > 1 else ''} in {given['out']}. "
    if known := [row for row in made if row["kept"] is not None]:
        worst, mean = min(known, key=lambda row: row["kept"]), sum(row["kept"] for row in known) / len(known)
        said += f"As they were written they hold {share(mean)} of the perturbation "
        said += f"(least: {share(worst['kept'])}, {worst['file']}). "
    said += f"The largest change of a pixel is {max(row['linf_pixels'] for row in made):.0f} of 255"
    if noise := [row["psnr_db"] for row in made if row["psnr_db"] is not None]:
        said += f", the lowest PSNR {min(noise):.1f} dB"
    _say(console, f"{said}.")


def _run_behind(given: dict[str, Any]) -> Run | None:
    """Return the run that a generator is from, if it is here."""
    from faap.perturbation.storage import place_of

    place = place_of(given["generator"])
    return Run.of(place) if place.exists() else None


def _detector_here(run: Run, recipe: "Recipe") -> str:
    """Return what a run's file names as its detector, which is fetched for nobody who does not name it."""
    name = recipe.detr_checkpoint
    if name != "promenade" and not Path(name).exists():
        raise FaapError(f"{run.config}: its detector {name} is not here; say --detr_checkpoint {name}, or where it is.")
    return name


def _detector_behind(given: dict[str, Any], needed: bool, device: Any = None) -> "FrozenDetector | None":
    """Load the detector that is typed, or else the one in the generator's run, if it is there."""
    from faap.config import run_recipe

    name, run = given["detr_checkpoint"], _run_behind(given)
    if not name and run and run.config.is_file():
        name = _detector_here(run, run_recipe(run))
    if not name and needed:
        raise FaapError(f"{given['generator']}: does not say which detector it is for. Give --detr_checkpoint.")
    return faap.load_detector(name, device) if name else None


def export(parser: Parser, console: Console) -> None:
    """Write a trained generator, alone or with its detector, as one ONNX or torch.export file."""
    _shared(parser, "generator", "--epsilon")
    parser.add_argument("--to", choices=("onnx", "torch"), default="onnx", help="the format (default: onnx)")
    parser.add_argument("--output", metavar="FILE", help="the file (default: faap_outputs/generator.onnx or .pt2)")
    parser.add_argument("--with_detector", action="store_true", help="the detector behind it, in the same file")
    parser.add_argument("--detr_checkpoint", metavar="TEXT", help="that detector (default: the run's)")
    given = parser.given()
    from faap.export import ENDINGS
    from faap.export import export as write

    generator = faap.load_generator(given["generator"], epsilon=given["epsilon"])
    detector = _detector_behind(given, needed=True) if given["with_detector"] else None
    name = "generator_and_detector" if detector else "generator"
    path, run = Path(given["output"] or f"faap_outputs/{name}{ENDINGS[given['to']]}"), _run_behind(given)
    about = write(generator, path, to=given["to"], detector=detector, run=run)
    if run and run.metrics.is_file() and "gap" not in about:
        _say(console, f"{run.metrics} is about another generator, or another ε: its figures are left out.", "yellow")
    _say(console, f"{path}: differs from PyTorch by {about['largest_difference']:.1e} at most.")


def push(parser: Parser, console: Console) -> None:
    """Send a run's generator, with a model card of what was measured, to the Hugging Face hub."""
    parser.add_argument("run", help="a run directory, or promenade")
    parser.add_argument("repository", metavar="ORG/NAME", help="it is made if it is not there")
    parser.add_argument("--private", action="store_true", help="if it is made")
    parser.add_argument("--folder", metavar="DIR", help="write what would be sent here, and send nothing")
    given = parser.given()
    from faap import hub

    if given["folder"]:
        hub.write_folder(given["run"], given["folder"], given["repository"])
        _say(console, f"{given['folder']}: what would be sent")
    else:
        _say(console, hub.push(given["run"], given["repository"], private=given["private"]))


def audit(parser: Parser, console: Console) -> None:
    """Say whether a detector finds two groups unequally well, how sure that is, and where it comes from."""
    _shared(parser, "--device", "--split", "--i_know", "--num_workers")
    parser.add_argument("dataset_root", help="the data set: a folder or file, or promenade")
    _data_flags(parser, "dataset_root")
    parser.add_argument("--predictions", metavar="FILE", help="a COCO results file, in place of a detector")
    parser.add_argument("--generator", default="", metavar="PLACE", help="what this run, folder or file changes, too")
    parser.add_argument("--transfer", default="", metavar="DETECTOR", help="the generator before this detector, too")
    here, kept = "faap_outputs/audit", "gets audit.json and audit.html (default: %(default)s)"
    parser.add_argument("--output_dir", default=here, help=kept)
    parser.add_argument("--score", type=float, default=0.5, metavar="X", help="threshold in use (default: 0.5)")
    replicates = "bootstrap replicates; no intervals below 40 (default: 500)"
    parser.add_argument("--samples", default=500, help=replicates, **_COUNT)
    given = parser.given()
    from faap.audit import audit_data
    from faap.config import data_arguments
    from faap.report.audit import audit_page, audit_summary

    dataset = faap.load_dataset(**data_arguments(given))
    for said in dataset.usable(given["split"]):
        console.print(said, style="yellow")
    names = ("split", "predictions", "generator", "transfer", "i_know", "score", "samples", "num_workers", "device")
    own = "promenade" if given["dataset_root"] == "promenade" and not given["predictions"] else ""
    chosen = given.get("detr_checkpoint") or own
    root = _place(given)
    split, result = audit_data(dataset, detector=chosen, console=console, **{name: given[name] for name in names})
    console.print(audit_summary(result))
    page, numbers = audit_page(result, split), json.dumps(result, indent=2) + "\n"
    with writing(root):
        places = write_text(root / "audit.json", numbers), write_text(root / "audit.html", page)
    _say(console, "numbers: {}\nreport:  {}".format(*places))


def app(parser: Parser, console: Console) -> None:
    """Show in the browser what a generator does to a picture, audit data, and lay runs side by side."""
    _shared(parser, "--device")
    places: dict[str, Any] = {"nargs": "+", "action": "extend", "metavar": "PLACE"}
    parser.add_argument("--generators", help="runs, generators' folders or files (default: promenade)", **places)
    parser.add_argument("--detr_checkpoint", help="detectors to choose from (default: promenade)", **places)
    parser.add_argument("--data", help="data sets that can be audited (default: promenade)", **places)
    _data_flags(parser, "dataset_root", "detr_checkpoint")
    here = "folder in which runs are looked for (default: %(default)s)"
    parser.add_argument("--runs", default="faap_outputs", metavar="DIR", help=here)
    near = "address to listen at; whoever can reach it can use the page (default: %(default)s)"
    parser.add_argument("--host", default="127.0.0.1", help=near)
    free = "0: any that is free (default: %(default)s)"
    parser.add_argument("--port", type=int, default=7860, metavar="N", help=free)
    given = parser.given()
    from faap.app import Shelf, serve
    from faap.config import data_arguments

    generators, detectors, data = (given[name] or ["promenade"] for name in ("generators", "detr_checkpoint", "data"))
    shelf = Shelf(generators, detectors, data, given["runs"], data_arguments(given), given["device"])
    serve(shelf, given["host"], given["port"], console=console)


def _trained_with(given: dict[str, Any]) -> dict[str, Any]:
    """Return which data, groups and detector: what is typed, and of the rest what the run says.

    Another data set comes with its own groups and files, of which the run says nothing.
    """
    from faap.config import fields_of, run_recipe

    names, run = fields_of("data", "groups"), _run_behind(given)
    settings = {name: given[name] for name in names if name in given}
    if run and run.config.is_file() and not {"dataset_root", "detr_checkpoint"} <= settings.keys():
        recipe = run_recipe(run, **settings)
        if "detr_checkpoint" not in settings:
            _detector_here(run, recipe)
        if "dataset_root" in settings:
            names = ("detr_checkpoint",)
        elif not (recipe.dataset_root == "promenade" or Path(recipe.dataset_root).exists()):
            raise FaapError(f"{run.config}: the data set {recipe.dataset_root} is not there; see --dataset_root.")
        settings = {name: getattr(recipe, name) for name in names} | settings
    for name, what in (("dataset_root", "data set"), ("detr_checkpoint", "detector")):
        if name not in settings:
            lacking = f"{given['generator']}: does not say which {what} to measure it with."
            raise FaapError(f"{lacking} Give --{name}; promenade is the embedded benchmark's.")
    return settings


def compare(parser: Parser, console: Console) -> None:
    """Train several recipes with several seeds, and lay them side by side."""
    parser.add_argument("recipes", nargs="+", help="names, YAML files, or folders of them")
    parser.add_argument("--seeds", default=1, help="runs of each recipe, with seeds from --seed on", **_COUNT)
    parser.add_argument("--jobs", help="runs at the same time; they share the cores (default: 1)", **_COUNT)
    cluster = "hand the runs to a Ray cluster: auto, HOST:PORT or ray://HOST:PORT; if left out, one found or new"
    parser.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help=cluster)
    parser.add_argument("--ablate", action="store_true", help="add the variants that revert one decision each")
    names = [name for name in _recipes_in(parser.words) if not os.path.isdir(name)]
    here = {"output_dir": "faap_outputs/compare"}
    _recipe_flags(parser, "RECIPE [RECIPE ...] ", names, here)
    given = here | parser.given()
    if "resume" in given:
        raise FaapError("--resume is not for compare: repeat the command, and what is unfinished goes on by itself.")
    from faap.compare import RayRunner, recipes_to_compare
    from faap.compare import compare as run_all
    from faap.report import comparison_table

    root, address = Path(given.pop("output_dir")), given.pop("ray")
    how = {name: given.pop(name) for name in ("seeds", "jobs")}
    chosen = recipes_to_compare(given.pop("recipes"), ablate=given.pop("ablate"), **given)
    result = run_all(chosen, root, **how, runner=None if address is None else RayRunner(address), console=console)
    console.print(comparison_table(result, console.width))
    _say(console, f"numbers: {root / 'compare.json'}\nreport:  {root / 'compare.html'}")
    if count := len(result["failed"]):
        raise FaapError(f"{count} run{'s' if count > 1 else ''} failed; repeat the command to try again.")


def bench(parser: Parser, console: Console) -> None:
    """Measure what faap costs beside the detector alone, as ratios."""
    _shared(parser, "--device")
    here, kept = "faap_outputs/bench.json", "gets the figures (default: %(default)s)"
    parser.add_argument("--json", default=here, metavar="FILE", help=kept)
    parser.add_argument("--threads", default=2, help="of torch, on the CPU (default: 2)", **_COUNT)
    parser.add_argument("--onnx", action="store_true", help="measure exported files in onnxruntime, too")
    parser.add_argument("--repeats", default=5, help="turns whose median is reported (default: 5)", **_COUNT)
    given = parser.given()
    from faap import bench as benchmark

    path = Path(given.pop("json"))
    if path.is_dir():
        raise FaapError(f"{path}: is a folder; --json names a file.")
    refuse_device(path)
    _writable(path.parent, "--json")
    result = benchmark.bench(**given, console=console)
    console.print(benchmark.table(result))
    _say(console, write_text(path, json.dumps(result, indent=1) + "\n"))


# a column for what is long, as paths are, and counts to its end
_folding = partial(Column, overflow="fold")


def recipes(parser: Parser, console: Console) -> None:
    """List the recipes, or show one with its schedules."""
    parser.add_argument("name", nargs="?", help="a recipe's name or a YAML file; all of them if left out")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given, rows = parser.given(), list[tuple[str, ...]]()
    if given["name"] is None:
        shown: dict[str, Any] = {name: faap.load_recipe(name).description for name in recipe_names()}
        caption = f"variants of infonce_4th: {', '.join(variants())}"
        table, rows = Table(*map(_folding, ("recipe", "what it is")), caption=caption), [*shown.items()]
    else:
        find(given["name"])  # a wrong name is said before torch is loaded
        recipe = faap.load_recipe(given["name"])
        values, schedules, known = recipe.to_dict(), recipe.schedules(), recipe.__dataclass_fields__
        shown = values | {"schedules": schedules}
        table = Table(*map(_folding, ("field", "value", "what it is")), title=recipe.name)
        rows = [(name, str(value), known[name].metadata["help"]) for name, value in values.items()]
        rows += [(name, " ".join(f"{each:.4g}" for each in way), "epoch by epoch") for name, way in schedules.items()]
    for row in rows:
        table.add_row(*row)
    print(json.dumps(shown, indent=2)) if given["json"] else console.print(table)


def _conclude(metrics: dict[str, Any], run: Run, console: Console) -> None:
    from faap.report import summary
    from faap.report.words import cost

    console.print(summary(metrics))
    _say(console, f"cost:    {cost(metrics | cost_of(run.path))}\nmetrics: {run.metrics}\nreport:  {run.report}")


def completion(parser: Parser, console: Console) -> None:
    """Print what completes commands, recipes and flags in a shell: faap completion bash >> ~/.bashrc."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")
    shell = parser.given()["shell"]
    words = {name: [*_flags_of(name), *(recipe_names() if name in _NAMES_RECIPES else ())] for name in COMMANDS}
    if shell == "fish":
        lines = [f"complete -c faap -n __fish_use_subcommand -a '{' '.join(COMMANDS)}'"]
        lines += [f"complete -c faap -n '__fish_seen_subcommand_from {n}' -a '{' '.join(w)}'" for n, w in words.items()]
    else:
        lines = ["autoload -U +X bashcompinit && bashcompinit"] if shell == "zsh" else []
        lines += ["_faap() {", '  local words=""', '  case "${COMP_WORDS[1]}" in']
        lines += [f'    {name}) words="{" ".join(each)}" ;;' for name, each in words.items()]
        lines += ["  esac", f'  [ "$COMP_CWORD" -eq 1 ] && words="{" ".join(COMMANDS)}"']
        lines += ['  COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))', "}"]
        lines += ["complete -o default -F _faap faap"]
    print("\n".join(lines))


# flags of every command
_EVERYWHERE = ("--quiet", "--verbose")
# commands after which the name of a recipe is typed
_NAMES_RECIPES = ("train", "compare", "recipes")


def _flags_of(name: str) -> list[str]:
    parser = Parser(["--help"], prog="faap")
    with suppress(SystemExit), redirect_stdout(io.StringIO()):
        COMMANDS[name](parser, Console(quiet=True))
    return sorted({*_EVERYWHERE, *(flag for flag in parser._option_string_actions if flag.startswith("--"))})


Command = Callable[[Parser, Console], int | None]
_ALL = (train, demo, status, check, audit, app, evaluate, apply, export, push, compare, bench, recipes, completion)
COMMANDS: dict[str, Command] = {each.__name__: each for each in _ALL}


def _usage() -> str:
    lines = [f"  {name:<10} {(function.__doc__ or '').splitlines()[0]}" for name, function in COMMANDS.items()]
    return "usage: faap COMMAND [ARGUMENTS]\n\n" + "\n".join(lines) + "\n\n'faap COMMAND --help' explains one."


def run(name: str, words: Sequence[str], prog: str | None = None) -> int:
    """Run one command with its arguments; return the exit status."""
    command, rest = COMMANDS[name], [word for word in words if word not in _EVERYWHERE]
    every = "--quiet prints errors alone; --verbose tells where in the program an error arose."
    parser = Parser(rest, prog=prog or f"faap {name}", description=command.__doc__, epilog=every)
    # of several processes only the first prints
    quiet = os.environ.get("RANK", "0") != "0" and os.environ.get("WORLD_SIZE", "1") != "1"
    console = Terminal(quiet=quiet or "--quiet" in words)
    # what is wrong, and not the line of a program in which that was seen
    warnings.formatwarning = lambda said, *_: f"warning: {visible(str(said))}\n"
    with warnings.catch_warnings():
        if console.quiet:
            warnings.simplefilter("ignore")
        return outcome(lambda: command(parser, console), verbose="--verbose" in words)


def main(words: Sequence[str] | None = None) -> int:
    """Run `faap` with the given arguments, those of the process by default; return the exit status."""
    # what files are called, and what is written in them, may not be printable
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if words is None else words)
    before = list(takewhile(lambda word: word in _EVERYWHERE, words))
    name, *rest = words[len(before) :] or ["--help"]
    return run(name, [*rest, *before]) if name in COMMANDS else outcome(partial(_alone, name))


def _alone(name: str) -> None:
    """Answer what is typed without a command."""
    if name in ("-h", "--help", "help"):
        print(_usage())
    elif name == "--version":
        print(f"faap {faap.__version__}")
    else:
        said = f"unknown command {name!r}.{nearest(name, COMMANDS)}"
        if name.startswith("-"):
            said = f"{name} stands before a command; flags come after it, as in faap recipes --json."
        raise FaapError(f"{said} See faap --help.")
