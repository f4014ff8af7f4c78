"""The typed recipe: every setting of a training, named once, with its unit and default."""

import math
import os
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from faap import schedules
from faap.errors import FaapError, nearest
from faap.files import atomic_write

RECIPES = Path(__file__).parent / "recipes"


def _setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare a field: what it is, and the values it can have (low and high belong to them, above and below do not)."""
    bounds = {"low": low, "high": high, "above": above, "below": below}
    return field(default=default, metadata={"help": help, "bounds": bounds, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete, named training configuration.

    Every field carries what it means and its unit in `dataclasses.fields(Recipe)`, `metadata["help"]`. Numbers may be
    given as text. The defaults are those of infonce_4th.

    Raises:
        FaapError: if a value is of the wrong type or out of range; it names the field, the value and what is allowed.

    Source: spec/recipes.md, "The table".
    """

    name: str = _setting("custom", "name of the recipe, a part of the default output folder's")
    description: str = _setting("", "what the recipe is, in a line")

    dataset_root: str = _setting(
        "promenade", "the data set: a folder or file of a layout in docs/data.md, or promenade, the embedded benchmark"
    )
    annotations: str = _setting("", "COCO JSON in dataset_root, {split} standing for train, val, test; empty: found")
    images_dir: str = _setting("", "folder of the images in dataset_root, {split} as above; empty: found")
    group_field: str = _setting("", "field or column that holds the group; empty: gender")
    group_csv: str = _setting("", "CSV in dataset_root from image ids or file names to groups; empty: none")
    skip_bad: bool = _setting(False, "go on without the broken records of the data set instead of refusing it")
    detr_checkpoint: str = _setting("promenade", "the frozen detector: folder, or promenade, the embedded one")
    output_dir: str = _setting("", "run directory; empty: faap_outputs/faap_outputs_NAME")
    resume: str = _setting("", "checkpoint to go on from; empty: start anew")
    device: str = _setting("auto", "auto, cpu, cuda or cuda:N")
    num_workers: int = _setting(0, "processes that load images; changes nothing but speed", low=0)
    seed: int = _setting(0, "of weights, sample order, augmentation and dropout", low=0, below=2**63)

    anchor_group: str = _setting("female", "the disadvantaged group, which is lifted")
    reference_group: str = _setting("male", "the group it is measured against")

    arch: str = _setting("light", "generator: light, or unet, the original", choices=("light", "unet"))
    widths: str = _setting("", "channels of its three resolutions, as in 16,48,96; empty: the architecture's own")
    head: str = _setting(
        "stabilized",
        "projection head; none: features are only normalised",
        choices=("none", "plain", "layernorm", "stabilized"),
    )
    proj_dim: int = _setting(128, "width of the projection", low=1)
    proj_dropout: float = _setting(0.1, "dropout probability in the stabilized head", low=0, below=1)

    batch_size: int = _setting(8, "images a step, even: half of each group", low=2)
    epochs: int = _setting(24, "epochs to train", low=1)
    images_per_epoch: int = _setting(0, "images an epoch; 0: twice the larger group's", low=0)

    train_edges: str = _setting(
        "480,512,544,576,608,640,672,704,736,768,800",
        "shortest edges drawn in training, in pixels for a detector whose own is 800, scaled for others; "
        "unused where a detector takes images as they are",
    )

    lr_g: float = _setting(1e-4, "highest learning rate, of generator and head", above=0)
    lr_min: float = _setting(1e-6, "learning rate toward which the cosine falls", low=0)
    lr_schedule: str = _setting("cosine", "of the learning rate", choices=("cosine", "constant"))
    lr_warmup_epochs: int = _setting(2, "epochs before the learning rate is at its highest; cosine only", low=0)
    optimizer: str = _setting("adamw", "optimizer", choices=("adamw", "adam"))
    weight_decay: float = _setting(0.01, "weight decay of the optimizer", low=0)
    max_norm: float = _setting(0.5, "gradient norm above which the gradient is scaled down", above=0)
    clip_apart: bool = _setting(False, "clip the gradients of generator and head each on their own")

    beta: float = _setting(0.5, "weight of the detection loss in the first epoch", low=0)
    beta_final: float = _setting(0.6, "weight of the detection loss in the last epoch", low=0)
    epsilon_start: float = _setting(0.05, "bound of the perturbation at first, in normalised units", low=0, high=1)
    epsilon_peak: float = _setting(0.10, "bound after the warm-up, in normalised units", low=0, high=1)
    epsilon_final: float = _setting(0.09, "bound toward which it falls at last, in normalised units", low=0, high=1)
    epsilon_warmup_epochs: int = _setting(6, "epochs from the first bound to the peak", low=0)
    epsilon_hold_epochs: int = _setting(6, "epochs at the peak", low=0)
    epsilon_decay_epochs: int = _setting(0, "epochs from the peak to the last bound; 0: all that remain", low=0)

    contrastive: str = _setting(
        "infonce",
        "contrastive term: infonce, in the batch; similarity, without negatives; momentum, with a queue",
        choices=("infonce", "similarity", "momentum"),
    )
    temperature: float = _setting(0.1, "temperature of the contrastive term", above=0)
    lambda_contrastive: float = _setting(1.0, "weight of the contrastive terms after their warm-up", low=0)
    contrastive_warmup_epochs: int = _setting(4, "epochs over which that weight rises", low=0)
    f2m_weight: float = _setting(1.0, "share in it of the direction from anchor to reference", low=0)
    m2f_weight: float = _setting(0.0, "share in it of InfoNCE from reference to anchor, unweighted", low=0)
    detach_reference: bool = _setting(True, "contrast and mean alignment send the reference group no gradient")
    score_weighting: str = _setting(
        "none",
        "contrastive weights from image scores: sigmoid of differences, or softmax over the reference group",
        choices=("none", "sigmoid", "softmax"),
    )
    score_alpha: float = _setting(1.0, "strength of the sigmoid weighting", low=0)
    queue_size: int = _setting(2048, "anchor features that momentum contrast remembers", low=1)
    centroid_momentum: float = _setting(0.99, "share of the reference centroid that a batch leaves", low=0, below=1)
    lambda_align: float = _setting(0.3, "weight of mean alignment", low=0)
    lambda_var: float = _setting(0.0, "weight of variance alignment", low=0)
    lambda_score: float = _setting(0.0, "weight of the distance of mean and quartiles of matched scores", low=0)
    lambda_wass: float = _setting(0.2, "weight of the one-sided Wasserstein distance of scores", low=0)
    wass_scores: str = _setting(
        "image", "whose scores: image scores, or those of matched queries", choices=("image", "matched")
    )
    lambda_score_gap: float = _setting(0.0, "weight of the score gap in the total; it moves nothing", low=0)
    lambda_adv: float = _setting(0.0, "weight of the adversarial term", low=0)
    adv_steps: int = _setting(4, "steps of the discriminator a step of the generator", low=1)
    lr_d: float = _setting(1e-4, "learning rate of the discriminator", above=0)
    adv_entropy_weight: float = _setting(0.2, "weight of the entropy in the adversarial term", low=0)
    adv_reference_weight: float = _setting(0.5, "weight of the reference group in it; the anchor group's is 1", low=0)
    score_top_k: int = _setting(10, "queries whose confidence makes an image's score", low=1)

    aug_strength: str = _setting(
        "weak", "colour jitter of the perturbed image", choices=("none", "weak", "medium", "strong")
    )
    precision: str = _setting("no", "mixed precision: no, or bf16", choices=("no", "bf16"))
    compile: bool = _setting(False, "compile the detector with torch.compile; for images that all have one size")

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, _checked(each, getattr(self, each.name)))
        if not self.name or Path(self.name).name != self.name:
            raise FaapError(f"name is {self.name!r}; it becomes the name of a folder and must be one.")
        if self.batch_size % 2:
            raise FaapError(f"batch_size is {self.batch_size}; it must be even, half of each group.")
        if self.lr_min > self.lr_g:
            raise FaapError(f"lr_min is {self.lr_min}; it must not exceed lr_g, which is {self.lr_g}.")
        allowed = {"infonce": ("none", "sigmoid", "softmax"), "momentum": ("none", "sigmoid"), "similarity": ("none",)}
        if self.score_weighting not in allowed[self.contrastive]:
            raise FaapError(
                f"score_weighting is {self.score_weighting!r}; with contrastive {self.contrastive!r} it must be "
                f"{' or '.join(allowed[self.contrastive])}."
            )
        if self.anchor_group == self.reference_group:
            raise FaapError(f"anchor_group and reference_group are both {self.anchor_group!r}; they must differ.")
        _ = self.training_edges, self.generator_widths  # refuse what is not numbers

    @property
    def training_edges(self) -> tuple[int, ...]:
        """Return `train_edges` as numbers."""
        return self._whole_numbers("train_edges", "of pixels, as in 480,640,800")

    @property
    def generator_widths(self) -> tuple[int, ...] | None:
        """Return `widths` as numbers; None for the architecture's own."""
        if not self.widths:
            return None
        widths = self._whole_numbers("widths", "of channels, as in 16,48,96")
        if len(widths) != 3 or any(width % 8 for width in widths):
            raise FaapError(f"widths is {self.widths!r}; it must be three multiples of 8, as in 16,48,96.")
        return widths

    def _whole_numbers(self, name: str, what: str) -> tuple[int, ...]:
        words = getattr(self, name).split(",")
        numbers = tuple(int(word) for word in words if word.strip().isdecimal() and int(word) > 0)
        if len(numbers) < len(words):
            raise FaapError(f"{name} is {getattr(self, name)!r}; it must be whole numbers {what}.")
        return numbers

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        return asdict(self)

    def data(self) -> dict[str, Any]:
        """Return the arguments of `faap.load_dataset`."""
        return {
            "root": self.dataset_root,
            "anchor": self.anchor_group,
            "reference": self.reference_group,
            "annotations": self.annotations,
            "images_dir": self.images_dir,
            "group_field": self.group_field,
            "group_csv": self.group_csv,
            "skip_bad": self.skip_bad,
        }

    def save(self, path: str | Path) -> None:
        """Write all fields to a YAML file that `load_recipe` reads; the file is complete or absent."""
        with atomic_write(Path(path)) as temporary:
            temporary.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8")

    def schedules(self) -> dict[str, list[float]]:
        """Return a value for each epoch of `epsilon`, `beta`, `contrastive_weight` and `learning_rate`."""
        epochs = range(self.epochs)
        epsilon = (self.epsilon_start, self.epsilon_peak, self.epsilon_final)
        lengths = (self.epsilon_warmup_epochs, self.epsilon_hold_epochs, self.epsilon_decay_epochs)
        cosine = (self.lr_g, self.lr_min, self.lr_warmup_epochs)
        return {
            "epsilon": [schedules.epsilon(e, self.epochs, *epsilon, *lengths) for e in epochs],
            "beta": [schedules.linear(e, self.epochs, self.beta, self.beta_final) for e in epochs],
            "contrastive_weight": [
                schedules.warmed_up(e, self.lambda_contrastive, self.contrastive_warmup_epochs) for e in epochs
            ],
            "learning_rate": [
                schedules.learning_rate(e, self.epochs, *cosine) if self.lr_schedule == "cosine" else self.lr_g
                for e in epochs
            ],
        }


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with faap."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


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
    path = Path(name_or_path)
    if str(name_or_path) in recipe_names():
        path = RECIPES / f"{name_or_path}.yaml"
    elif path.suffix not in (".yaml", ".yml") and not path.is_file():
        known = recipe_names()
        raise FaapError(
            f"{name_or_path}: no recipe of this name, and no file.{nearest(str(name_or_path), known)} "
            f"Recipes: {', '.join(known)}."
        )
    _refuse_unknown(overrides, "")
    values = _read(path)
    try:
        return Recipe(**(values | overrides))
    except FaapError as error:
        raise FaapError(f"{name_or_path}: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        # all values stay text until a field says what they are: YAML alone takes 1e-4 for text and no for false
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise FaapError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise FaapError(f"{path}: is not valid YAML: {error}") from error
    if not isinstance(values, Mapping):
        raise FaapError(f"{path}: must be a mapping of fields to values, one a line, such as 'temperature: 0.07'.")
    base = values.get("base")
    known = recipe_names()
    if base is not None and base not in known:
        raise FaapError(f"{path}: base is {base!r}; it must be one of {', '.join(known)}.{nearest(str(base), known)}")
    own = {key: value for key, value in values.items() if key != "base"}
    _refuse_unknown(own, f"{path}: ")
    return (_read(RECIPES / f"{base}.yaml") if base else {}) | {"name": path.stem} | own


def _refuse_unknown(values: Mapping[str, Any], place: str) -> None:
    known = [each.name for each in fields(Recipe)]
    for key in values:
        if key not in known:
            raise FaapError(f"{place}unknown field {key!r}.{nearest(str(key), known)}")


def _checked(setting: "Field[Any]", value: Any) -> Any:
    """Return the value in the field's type, or say what is wrong with it."""
    name, choices, bounds = setting.name, setting.metadata["choices"], setting.metadata["bounds"]
    if setting.type is str:
        if not isinstance(value, str | os.PathLike):
            raise FaapError(f"{name} is {value!r}; it must be text.")
        value = os.fspath(value)
        if choices and value not in choices:
            raise FaapError(f"{name} is {value!r}; it must be one of {', '.join(choices)}.{nearest(value, choices)}")
        return value
    if setting.type is bool:
        known = {"true": True, "yes": True, "false": False, "no": False}
        if str(value).lower() not in known:
            raise FaapError(f"{name} is {value!r}; it must be true or false.")
        return known[str(value).lower()]
    number = _number(int if setting.type is int else float, value)
    if number is None:
        raise FaapError(f"{name} is {value!r}; it must be a {'whole ' if setting.type is int else ''}number.")
    kept = {
        "at least": bounds["low"] is None or number >= bounds["low"],
        "at most": bounds["high"] is None or number <= bounds["high"],
        "above": bounds["above"] is None or number > bounds["above"],
        "below": bounds["below"] is None or number < bounds["below"],
    }
    if not all(kept.values()):
        allowed = zip(kept, bounds.values(), strict=True)
        words = " and ".join(f"{word} {bound}" for word, bound in allowed if bound is not None)
        raise FaapError(f"{name} is {value!r}; it must be {words}.")
    return number


def _number(kind: type[int] | type[float], value: Any) -> float | None:
    """Return the value, or what a text says, as a finite number of the kind; None if it is not one."""
    try:
        number = kind(value)
        exact = isinstance(value, str) or number == value
        return number if math.isfinite(number) and exact and not isinstance(value, bool) else None
    except (TypeError, ValueError, OverflowError):
        return None
