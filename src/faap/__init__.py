"""faap: fairness-aware adversarial perturbation in front of a frozen object detector.

The public names are loaded on first use, so that `import faap` and the command line's help stay quick.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from faap import objectives as objectives
    from faap.config import Recipe as Recipe
    from faap.config import load_recipe as load_recipe
    from faap.data import load_dataset as load_dataset
    from faap.deploy import apply as apply
    from faap.detectors import load_detector as load_detector
    from faap.errors import FaapError as FaapError
    from faap.evaluation.evaluate import evaluate as evaluate
    from faap.perturbation import load_generator as load_generator
    from faap.training.train import TrainResult as TrainResult
    from faap.training.train import train as train

__version__ = metadata.version("faap")

_PLACES = {"FaapError": "faap.errors", "Recipe": "faap.config", "load_recipe": "faap.config"}
_PLACES |= {"load_dataset": "faap.data", "load_detector": "faap.detectors", "load_generator": "faap.perturbation"}
_PLACES |= {"train": "faap.training", "TrainResult": "faap.training", "evaluate": "faap.evaluation"}
_PLACES |= {"apply": "faap.deploy"}

__all__ = [*_PLACES, "objectives"]


def __getattr__(name: str) -> Any:
    if name == "objectives":
        return import_module("faap.objectives")
    if name not in _PLACES:
        raise AttributeError(f"module 'faap' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
