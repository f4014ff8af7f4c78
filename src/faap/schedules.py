"""What changes from epoch to epoch, as plain functions of the recipe and the epoch.

Epochs count from 0. Source of all: docs/recipes.md, "Schedules".
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from faap.errors import FaapError
from faap.settings import setting

_setting = partial(setting, section="schedule")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of the schedules that every recipe has."""

    epochs: int = setting(24, "epochs to train", low=1, section="training")

    lr_g: float = _setting(1e-4, "highest learning rate, of generator and head", above=0)
    lr_min: float = _setting(1e-6, "learning rate toward which the cosine falls", low=0)
    lr_schedule: str = _setting("cosine", "of the learning rate", choices=("cosine", "constant"))
    lr_warmup_epochs: int = _setting(2, "epochs before the learning rate is at its highest; cosine only", low=0)
    beta: float = _setting(0.5, "weight of the detection loss in the first epoch", low=0)
    beta_final: float = _setting(0.6, "weight of the detection loss in the last epoch", low=0)
    epsilon_start: float = _setting(0.05, "bound of the perturbation at first, in normalised units", low=0, high=1)
    epsilon_peak: float = _setting(0.10, "bound after the warm-up, in normalised units", low=0, high=1)
    epsilon_final: float = _setting(0.09, "bound toward which it falls at last, in normalised units", low=0, high=1)
    epsilon_warmup_epochs: int = _setting(6, "epochs from the first bound to the peak", low=0)
    epsilon_hold_epochs: int = _setting(6, "epochs at the peak", low=0)
    epsilon_decay_epochs: int = _setting(0, "epochs from the peak to the last bound; 0: all that remain", low=0)


def epsilon(recipe: Settings, epoch: int) -> float:
    """Rise linearly from start to peak over the warm-up, hold, then fall linearly to final over the decay and stay.

    A decay of 0 takes the epochs that remain, at the end of which final would be reached.
    """
    start, peak, warmup = recipe.epsilon_start, recipe.epsilon_peak, recipe.epsilon_warmup_epochs
    if epoch < warmup:
        return start + (peak - start) * epoch / warmup
    held = warmup + recipe.epsilon_hold_epochs
    if epoch < held:
        return peak
    fallen = (epoch - held) / (recipe.epsilon_decay_epochs or recipe.epochs - held)
    return peak - (peak - recipe.epsilon_final) * min(1.0, fallen)


def beta(recipe: Settings, epoch: int) -> float:
    """Go linearly from the value of the first epoch to that of the last; a single epoch has the first."""
    return recipe.beta + (recipe.beta_final - recipe.beta) * epoch / max(recipe.epochs - 1, 1)


def learning_rate(recipe: Settings, epoch: int) -> float:
    """Rise linearly toward the peak over the warm-up, reach it in the epoch after, then follow half a cosine down."""
    warmup, peak, lowest = recipe.lr_warmup_epochs, recipe.lr_g, recipe.lr_min
    if recipe.lr_schedule == "constant":
        return peak
    if epoch < warmup:
        return peak * (epoch + 1) / (warmup + 1)
    progress = (epoch - warmup) / (recipe.epochs - warmup)
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * progress)) / 2


def schedules(recipe: Settings, rooms: Iterable[Any]) -> dict[str, list[float]]:
    """Return a value for each epoch of every schedule: the recipe's own, and those that its terms' rooms bring."""
    theirs = (pair for room in rooms for pair in getattr(room, "schedules", lambda _: ())(recipe))
    found = [("epsilon", partial(epsilon, recipe)), ("beta", partial(beta, recipe)), *theirs]
    found.append(("learning_rate", partial(learning_rate, recipe)))
    for name, count in Counter(name for name, _ in found).items():
        if count > 1:
            raise FaapError(f"there are two schedules {name!r}; name the terms' own one otherwise.")
    return {name: [function(epoch) for epoch in range(recipe.epochs)] for name, function in found}
