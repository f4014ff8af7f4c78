"""Building, saving and loading generators."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from faap.conform import conform
from faap.errors import FaapError, nearest
from faap.files import hub_folder, read_json, read_safetensors, read_tensors
from faap.perturbation.generator import CONFIG_FILE, DIGEST, WEIGHTS_FILE, Generator
from faap.perturbation.light import Light
from faap.perturbation.unet import UNet
from faap.weights import check_finite, check_fit, tensors_sha256, unwrapped

ARCHITECTURES: dict[str, type[Generator]] = {kind.arch: kind for kind in (Light, UNet)}
ACCEPTED = (
    f"promenade, a run directory, a directory with {WEIGHTS_FILE} and {CONFIG_FILE}, that file, a checkpoint "
    "(epoch_0000.pth), or org/model on the Hugging Face hub"
)


def build_generator(arch: str = "light", epsilon: float = 0.10, widths: Sequence[int] | None = None) -> Generator:
    """Build a new generator: "light" works at reduced resolution; "unet" is the original network.

    Raises:
        FaapError: if there is no such architecture, or it takes no such `epsilon` or `widths`; see `Generator`.
    """
    conform(arch, str, "arch")
    if arch not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise FaapError(f"arch: is {arch!r}; it should be one of {known}.{nearest(arch, ARCHITECTURES)}")
    return ARCHITECTURES[arch](epsilon, widths)


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
        path: "promenade" for the one that ships with the package, trained with the recipe `equal` in front of the
            embedded benchmark's detector; a run directory (its `generator/`), a directory that `save_generator` wrote,
            its `model.safetensors`, a checkpoint of the training or of the original U-Net's (`.pth`), or the name of a
            model on the hub.
        epsilon: takes the place of the saved bound, in normalised units.

    Returns:
        The generator.

    Raises:
        FaapError: if there is no such thing, or it does not hold a generator.
    """
    place = place_of(path)
    if (place / "generator").is_dir():
        place = place / "generator"
    if place.is_file() and place.suffix != ".safetensors":
        return _restore(place, place, *_read_checkpoint(place), epsilon)
    # a folder that exists means a local path with a typing error, for which nobody wants to wait for the network
    hub = str(path).count("/") == 1 and place.suffix not in (".pth", ".safetensors")
    if not place.exists() and (not hub or place.parent.exists()):
        why = f", and the hub is not asked where there is a folder {place.parent}" if hub else ""
        raise FaapError(f"{path}: does not exist{why}; accepted is {ACCEPTED}.")
    return load_folder(place, epsilon)


def place_of(path: str | Path) -> Path:
    """Return where a generator lies: of "promenade", the run that left it, in the package; else the path itself."""
    from faap.promenade import shipped_run

    return shipped_run() if str(path) == "promenade" else Path(path)


def load_folder(place: str | Path, epsilon: float | None = None, **hub: Any) -> Generator:
    """Load a generator from its directory, the weights in it, or the hub; see `load_generator`."""
    path = Path(place)
    if not path.exists():
        path = hub_folder(str(place), [CONFIG_FILE, WEIGHTS_FILE], **hub)
    path = path / WEIGHTS_FILE if path.is_dir() else path
    config = path.with_name(CONFIG_FILE)
    for file in (path, config):
        if not file.exists():
            raise FaapError(f"{file}: is missing, and a generator needs both files; accepted is {ACCEPTED}.")
    settings, weights = read_json(config), read_safetensors(path)
    digest = settings.pop(DIGEST, None)
    generator = _restore(path, config, settings, weights, epsilon)
    if digest not in (None, tensors_sha256(weights)):
        damaged = f"is not as it was written: {config} has another digest of its weights. Take another copy of both"
        raise FaapError(f"{path}: {damaged}.")
    return generator


def _read_checkpoint(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    checkpoint = read_tensors(path)
    conform(checkpoint, {"generator": {str: Tensor}, "generator_config?": {str: object}}, f"{path} (a generator's)")
    state = unwrapped(unwrapped(checkpoint["generator"], "down1.net.0.weight"), "stem.weight")
    check_finite(state, path)
    if "generator_config" in checkpoint:
        return checkpoint["generator_config"], state
    if "down1.net.0.weight" not in state:
        raise FaapError(f"{path}: has no entry 'generator_config', and its generator is not the original U-Net.")
    for name, value in list(state.items()):
        # a convolution in front of batch norm can do without a bias
        if value.ndim == 4 and (bias := name.removesuffix("weight") + "bias") not in state:
            state[bias] = torch.zeros(len(value))
    return {"arch": "unet"}, state


def _restore(
    path: Path, source: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], epsilon: float | None
) -> Generator:
    """Build the generator that a config describes, once it is known that the weights are those of one."""
    if unknown := sorted(config.keys() - {"arch", "epsilon", "widths"}):
        raise FaapError(f"{source}: has an entry {unknown[0]!r}, which no generator of this version knows.")
    try:
        with torch.device("meta"):
            generator = build_generator(**{k: v for k, v in config.items() if v is not None}).float()
    except FaapError as error:
        raise FaapError(f"{source}: {error}") from error
    check_fit(state, generator.state_dict(), path)
    generator.to_empty(device="cpu").load_state_dict(state)
    if epsilon is not None:
        generator.epsilon = epsilon
    return generator.eval()
