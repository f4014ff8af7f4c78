"""The typed recipe: every setting of a training, named once, with its unit and default."""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, make_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import yaml

from faap.conform import conform
from faap.data.images import TRAINING_EDGES
from faap.errors import FaapError, nearest
from faap.files import write_text
from faap.objectives import ROOMS, adversarial, alignment, heads, transport
from faap.objectives.own import OwnTerms, blaming, own_terms
from faap.recipes import RECIPES as RECIPES
from faap.recipes import find, read
from faap.recipes import recipe_names as recipe_names
from faap.runs import AUTO, Run
from faap.schedules import Settings as Schedules
from faap.schedules import schedules
from faap.settings import SECTIONS, checked, setting, shown

Values = Mapping[str, Any]
_run, _data, _groups, _generator, _training = (partial(setting, section=section) for section in SECTIONS[:5])
_EDGES = "shortest edges drawn, in pixels for a detector of 800, scaled for others; unused where images keep their size"


@dataclass(frozen=True, kw_only=True)
class Recipe(transport.Settings, adversarial.Settings, alignment.Settings, heads.Settings, Schedules):
    """A complete, named training configuration: the settings below, and those that the terms of the loss bring.

    Numbers may be given as text. The defaults are those of infonce_4th.

    Attributes:
        rooms: the modules whose terms and schedules a training has.
        own: those of the user's, if there are any.

    Raises:
        FaapError: if a value is of the wrong type or out of range; it names the field, the value and what is allowed.

    Source: docs/recipes.md, "The table".
    """

    rooms: ClassVar[tuple[Any, ...]] = ROOMS
    own: ClassVar[OwnTerms | None] = None

    name: str = _run("custom", "name of the recipe, a part of the default output folder's")
    description: str = _run("", "what the recipe is, in a line")
    output_dir: str = _run("", "run directory; empty: faap_outputs/faap_outputs_NAME")
    resume: str = _run("auto", "checkpoint or run to go on from; auto: what lies in output_dir, if anything does")
    fresh: bool = _run(False, "start anew, and move what lies in output_dir aside")
    device: str = _run("auto", "auto, cpu, cuda or cuda:N")
    num_workers: int = _run(0, "processes that load images; changes nothing but speed", low=0, high=1024)
    save_steps: int = _run(0, "steps after which a state is kept within an epoch, too; 0: by the clock alone", low=0)
    save_minutes: float = _run(5.0, "minutes after which a state is kept within an epoch", above=0)
    keep: int = _run(0, "newest epochs whose checkpoints are kept, beside the best; 0: all", low=0)
    log_format: str = _run("text", "of epochs printed; json: and nothing else is", choices=("text", "json"))
    log_with: str = _run("tensorboard", "trackers of accelerate, as in tensorboard,wandb; empty: none")
    memory: int = _run(2048, "MB of decoded images that are kept while num_workers is 0", low=0, high=10**7)

    dataset_root: str = _data("promenade", "data set: folder or file (docs/data.md), or promenade, the embedded one")
    annotations: str = _data("", "COCO JSON in dataset_root, {split} standing for train, val, test; empty: found")
    images_dir: str = _data("", "folder of the images in dataset_root, {split} as above; empty: found")
    group_field: str = _data("", "field or column that holds the group; empty: gender")
    group_csv: str = _data("", "CSV in dataset_root from image ids or file names to groups; empty: none")
    skip_bad: bool = _data(False, "go on without the broken records of the data set instead of refusing it")
    scenes: int = _data(0, "training scenes of each group of promenade; 0: 12,000", low=0, high=100_000)
    detr_checkpoint: str = _data("promenade", "the frozen detector (docs/detectors.md), or promenade, the embedded one")

    anchor_group: str = _groups("female", "the disadvantaged group, which is lifted")
    reference_group: str = _groups("male", "the group it is measured against")

    arch: str = _generator("light", "generator: light, or unet, the original", choices=("light", "unet"))
    widths: tuple[int, ...] = _generator((), "its three widths, as in 16,48,96; empty: arch's own", low=8, high=4096)

    seed: int = _training(0, "of weights, sample order, augmentation and dropout", low=0, below=2**63)
    batch_size: int = _training(8, "images a step, even: half of each group", low=2)
    images_per_epoch: int = _training(0, "images an epoch; 0: twice the larger group's", low=0, high=10**9)
    train_edges: tuple[int, ...] = _training(TRAINING_EDGES, _EDGES, low=1, high=10_000)
    optimizer: str = _training("adamw", "optimizer", choices=("adamw", "adam", "muon"))
    weight_decay: float = _training(0.01, "weight decay of the optimizer", low=0)
    ema: float = _training(0.0, "decay of the moving average of the generator that is kept; 0: none", low=0, below=1)
    max_norm: float = _training(0.5, "gradient norm above which the gradient is scaled down", above=0)
    max_skipped: int = _training(10, "steps in a row left out because their loss is not finite; then the end", low=1)
    stop_on_collapse: bool = _training(False, "stop where a collapse of the features is suspected")
    clip_apart: bool = _training(False, "clip the gradients of generator and head each on their own")
    aug_strength: str = _training("weak", "colour jitter of the image", choices=("none", "weak", "medium", "strong"))
    jpeg: tuple[int, ...] = _training((), "qualities of JPEG that images go through, or none", low=1, high=100)
    shift: int = _training(0, "pixels by which half of the images are shifted at most, on the way", low=0, high=100)
    resize: float = _training(0.0, "share by which these are resized at most, on the way", low=0, high=0.5)
    precision: str = _training("no", "mixed precision: no, or bf16", choices=("no", "bf16"))
    graph: bool = _training(False, "on a GPU, record steps whose shapes repeat as CUDA graphs")
    compile: bool = _training(False, "compile the detector with torch.compile; for images that all have one size")

    no_object_weight: float = setting(0.0, "no-object's weight in the loss, for softmax; 0: the detector's", low=0)
    terms: str = setting("", "terms of your own: a .py file beside the recipe or here, or a module; see docs/terms.md")

    def blamed(self) -> AbstractContextManager[None]:
        """Say of an error in the block that the user's own terms made it, if there are any."""
        return blaming(self.own.file) if self.own else nullcontext()

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, checked(each, getattr(self, each.name)))
        with self.blamed():
            for base in type(self).__mro__:
                vars(base).get("check", lambda _: None)(self)
        if set(self.name) & set("/\\\n\t") or not self.name.strip(".") or len(os.fsencode(self.name)) > 200:
            raise FaapError(f"name is {shown(self.name)}; it becomes the name of a folder and must be one.")
        if self.batch_size % 2:
            raise FaapError(f"batch_size is {self.batch_size}; it must be even, half of each group.")
        if self.lr_min > self.lr_g:
            raise FaapError(f"lr_min is {self.lr_min}; it must not exceed lr_g, which is {self.lr_g}.")
        if self.fresh and self.resume not in AUTO:
            raise FaapError(f"fresh starts anew, and resume goes on, from {shown(self.resume)}; give one of them.")
        if self.anchor_group == self.reference_group:
            raise FaapError(f"anchor_group and reference_group are both {self.anchor_group!r}; they must differ.")
        if not self.train_edges:
            raise FaapError("train_edges is empty; it must be whole numbers of pixels, as in 480,640,800.")
        if self.widths and (len(self.widths) != 3 or any(width % 8 for width in self.widths)):
            raise FaapError(f"widths is {self.widths}; it must be three multiples of 8, as in 16,48,96.")

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values, section by section."""
        values = {name: getattr(self, name) for name in fields_of(kind=type(self))}
        return {k: ",".join(map(str, v)) if isinstance(v, tuple) else v for k, v in values.items()}

    def data(self) -> dict[str, Any]:
        """Return the arguments of `faap.load_dataset`."""
        return data_arguments(vars(self))

    def save(self, path: str | Path) -> None:
        """Write all fields to a YAML file that `load_recipe` reads; the file is complete or absent."""
        write_text(Path(path), yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True))

    def schedules(self) -> dict[str, list[float]]:
        """Return each epoch's `epsilon`, `beta`, `contrastive_weight`, `learning_rate` and those of its terms."""
        return schedules(self, self.rooms)


def fields_of(*sections: str, kind: type[Recipe] = Recipe) -> tuple[str, ...]:
    """Return the names of the fields that are about something, or all: see `faap.settings.SECTIONS`."""
    every = [(each.metadata["section"], each.name) for each in fields(kind)]
    return tuple(name for part in sections or SECTIONS for section, name in every if section == part)


def data_arguments(settings: Values) -> dict[str, Any]:
    """Return the arguments of `faap.load_dataset` that some fields of a recipe say."""
    theirs = {"dataset_root": "root", "anchor_group": "anchor", "reference_group": "reference"}
    names = [name for name in fields_of("data", "groups") if name in settings and name != "detr_checkpoint"]
    return {theirs.get(name, name): settings[name] for name in names}


def recipe_class(terms: Any = "", folder: Path = Path(), *, typed: bool = True) -> type[Recipe]:
    """Return the class of recipes that have the settings of a user's terms as well; arguments as of `own_terms`."""
    name = checked(Recipe.__dataclass_fields__["terms"], terms)
    return _class_with(own_terms(name, folder, typed=typed), name) if name else Recipe


@cache
def _class_with(own: OwnTerms, name: str) -> type[Recipe]:
    settings: Any = own.module.Settings
    for each in fields(settings):
        if hasattr(Recipe, each.name) and each not in fields(Recipe):
            raise FaapError(f"{own.file}: Settings.{each.name} is a name that every recipe has; choose another.")
    default = [("terms", str, setting(name, Recipe.__dataclass_fields__["terms"].metadata["help"]))]
    parts = {"rooms": (*ROOMS, own), "own": own}
    with blaming(own.file):
        return make_dataclass("Recipe", default, bases=(Recipe, settings), namespace=parts, frozen=True, kw_only=True)


def load_recipe(name_or_path: str | Path, /, **overrides: Any) -> Recipe:
    """Load a recipe by name, or from a YAML file of the user's.

    The file is a flat mapping of fields; `base: infonce_4th` makes it start from that recipe instead of the defaults.
    Without a field `name` the recipe has the file's.

    Args:
        name_or_path: one of `recipe_names()`, or a path.
        overrides: fields that take the place of the recipe's.

    Returns:
        The recipe.

    Raises:
        FaapError: if there is no such recipe or file, or a field is unknown or its value wrong.
    """
    recipe, values = _loaded(name_or_path, overrides)
    for one, other in (("dataset_root", "detr_checkpoint"), ("detr_checkpoint", "dataset_root")):
        # nobody means their own data with the embedded benchmark's detector, or the reverse, without saying so
        if getattr(recipe, one) != "promenade" and other not in values:
            given = f"{one} is {shown(getattr(recipe, one))}, and no {other} is given"
            raise FaapError(f"{name_or_path}: {given}: say which with --{other}; promenade is the embedded one.")
    return recipe


def _loaded(name_or_path: str | Path, typed: Values) -> tuple[Recipe, Values]:
    """Return a recipe, and which values the file and the person give it."""
    path = find(name_or_path)
    values, run = {**read(path), **typed}, Run(path.parent)
    saved = path.name == run.config.name and any(each.exists() for each in (run.log, run.checkpoints, run.metrics))
    named = typed if saved else values  # what a run wrote is nobody's word
    kind = partial(recipe_class, values.get("terms", ""), path.parent, typed="terms" in typed)
    return _made(kind, values, name_or_path, named), values


def run_recipe(run: Run, /, **typed: Any) -> Recipe:
    """Return the recipe that a run folder's config.yaml holds, but for the fields that the person typed.

    Terms of a user's own are not imported unless they are typed: the recipe lacks their settings and cannot be trained.

    Raises:
        FaapError: if the file cannot be read, or names a function as its detector and no detector is typed.
    """
    stored, kind = read(run.config), recipe_class(typed.get("terms", ""))
    if stored.get("terms"):
        stored = {key: value for key, value in stored.items() if key in fields_of(kind=kind)}
    return _made(lambda: kind, stored | typed, run.config, {"terms": stored.get("terms")} | typed)


def resumed_recipe(name_or_path: str | Path, stored: Values, place: Path, /, **typed: Any) -> Recipe:
    """Return the recipe with which a run goes on: what its checkpoint stores, but for what the person typed.

    Args:
        name_or_path: the recipe that was asked for; it must be the checkpoint's.
        stored: the checkpoint's recipe.
        place: the checkpoint.
        typed: fields that the person gave.

    Raises:
        FaapError: if the checkpoint is of another recipe, or names code that the person does not.
    """
    conform(stored, {str: (str, bool, int, float)}, f"{place}: recipe")
    asked, _ = _loaded(name_or_path, typed)  # the checkpoint knows data and detector where only one is typed
    if stored.get("name") != asked.name:
        raise FaapError(f"{place}: a checkpoint of the recipe {shown(stored.get('name'))}, not of {asked.name!r}.")
    mine = asked.to_dict()
    kept = {key: value for key, value in stored.items() if key not in (*fields_of("run"), *typed)}
    values = mine | kept | {"terms": asked.terms or stored.get("terms", "")}
    return _made(lambda: type(asked), values, place, mine)


def _made(kind: Callable[[], type[Recipe]], values: Values, place: str | Path, named: Values) -> Recipe:
    """Return the recipe that has these values, if the person named all code among them.

    Args:
        kind: finds its class.
        values: of its fields.
        place: where they are from, which errors name.
        named: what of them the person typed or wrote; other code is neither imported nor called.
    """
    try:
        for key in ("terms", "detr_checkpoint"):
            value = values.get(key)
            said = not value or value == named.get(key)
            if not said and (key == "terms" or (":" in str(value) and not os.path.exists(str(value)))):
                never = f"{key} is {shown(value)}, which is code, and what a file says is never run"
                raise FaapError(f"{never}. If you trust it, type --{key} {shown(value)[1:-1]}.")
        known = fields_of(kind=(found := kind()))
        if unknown := [key for key in values if key not in known]:
            raise FaapError(f"unknown field {shown(unknown[0])}.{nearest(str(unknown[0])[:80], known)}")
        return found(**values)
    except FaapError as error:
        raise FaapError(f"{place}: {error}") from error
