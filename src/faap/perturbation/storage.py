"""Saving and loading generators."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from faap.errors import FaapError
from faap.files import read_tensors
from faap.perturbation.generator import CONFIG_FILE, WEIGHTS_FILE, Generator

ACCEPTED = (
    f"a run directory, a directory with {WEIGHTS_FILE} and {CONFIG_FILE}, that file, a checkpoint (epoch_0000.pth), "
    "or org/model on the Hugging Face hub"
)


def save_generator(generator: Generator, directory: str | Path) -> None:
    """Save a generator on its own; each file is there in full or not at all.

    Args:
        generator: with the ε that it is meant to be used with.
        directory: gets `model.safetensors` and `config.json`; other files in it are left alone.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".saving-") as temporary:
        generator._save_pretrained(Path(temporary))
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            os.replace(Path(temporary) / name, directory / name)


def load_generator(path: str | Path, *, epsilon: float | None = None) -> Generator:
    """Load a generator, ready for use: on the CPU, in evaluation mode.

    Args:
        path: a run directory (its `generator/`), a directory that `save_generator` wrote, its `model.safetensors`, a
            checkpoint of the training or of the original U-Net's (`.pth`), or the name of a model on the hub.
        epsilon: takes the place of the saved bound, in normalised units.

    Returns:
        The generator.

    Raises:
        FaapError: if there is no such thing, or it does not hold a generator.
    """
    place = Path(path)
    if (place / "generator").is_dir():
        place = place / "generator"
    if place.is_dir():
        place = place / WEIGHTS_FILE
        if not place.exists():
            raise FaapError(f"{path}: has neither generator/ nor {WEIGHTS_FILE}; accepted is {ACCEPTED}.")
    if place.is_file():
        read = _read_safetensors if place.suffix == ".safetensors" else _read_checkpoint
        config, state = read(place)
        generator = _build(place, config, state)
    else:
        generator = _from_hub(str(path))
    if epsilon is not None:
        generator.epsilon = epsilon
    return generator.eval()


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config_path = path.with_name(CONFIG_FILE)
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FaapError(f"{config_path}: is missing; it says how to build the generator of {path.name}.") from None
    except ValueError as error:
        raise FaapError(f"{config_path}: is not valid JSON: {error}") from error
    try:
        return config, load_file(path)
    except SafetensorError as error:
        raise FaapError(f"{path}: is not a complete safetensors file: {error}") from error


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    checkpoint = read_tensors(path)
    state = checkpoint.get("generator") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FaapError(f"{path}: has no entry 'generator' of tensors, so it is no checkpoint of a generator.")
    if "generator_config" in checkpoint:
        return checkpoint["generator_config"], state
    if "down1.net.0.weight" not in state:
        raise FaapError(f"{path}: has no entry 'generator_config', and its generator is not the original U-Net.")
    for name, value in list(state.items()):
        # a convolution in front of batch norm can do without a bias
        if value.ndim == 4 and (bias := name.removesuffix("weight") + "bias") not in state:
            state[bias] = torch.zeros(len(value))
    return {"arch": "unet"}, state


def _build(path: Path, config: Any, state: dict[str, Tensor]) -> Generator:
    try:
        generator = Generator(**config)
        generator.load_state_dict(state)
    except (TypeError, ValueError, RuntimeError) as error:
        raise FaapError(f"{path}: its configuration {config} and weights do not make a generator: {error}") from error
    return generator


def _from_hub(name: str) -> Generator:
    # a folder that exists means a local path with a typing error, for which nobody wants to wait for the network
    if name.count("/") != 1 or Path(name).parent.exists() or Path(name).suffix in (".pth", ".safetensors"):
        raise FaapError(f"{name}: does not exist; accepted is {ACCEPTED}.")
    try:
        return Generator.from_pretrained(name, strict=True)
    except (OSError, HFValidationError, RuntimeError, TypeError) as error:
        raise FaapError(f"{name}: is no local path, and the hub did not give it either: {error}") from error
