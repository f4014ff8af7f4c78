"""Weights as they come from files: whole and finite, under the names and in the shapes that a model wants."""

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from faap.errors import FaapError


def a_weight(module: nn.Module) -> Tensor:
    """Return one of a module's weights, which is where the others are; of one that has none, an empty one."""
    return next(module.parameters(), torch.empty(0))


def check_finite(weights: Mapping[str, Tensor], place: object) -> None:
    """Raise a FaapError that names the first entry that is not a tensor of finite real numbers, all in the file."""
    for name, value in weights.items():
        _check_plain(name, value, place)
        if value.is_floating_point() and (wrong := int((~value.float().isfinite()).sum())):
            why = "the training that wrote it diverged, or the file is damaged. Take an earlier checkpoint."
            raise FaapError(f"{place}: {name} is NaN or infinite in {wrong} of {value.numel()} values: {why}")


def _check_plain(name: str, value: Tensor, place: object) -> None:
    if value.is_nested or value.layout != torch.strided or value.is_quantized or value.is_complex():
        raise FaapError(f"{place}: {name} is no plain tensor of real numbers.")
    if value.is_meta or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise FaapError(f"{place}: {name} is of shape {tuple(value.shape)}, of which the file holds a part only.")


def check_fit(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], place: object) -> None:
    """Raise a FaapError unless weights are those that a model wants, by name and shape."""
    shapes = [name for name in wanted if name in weights and weights[name].shape != wanted[name].shape]
    refuse_unfit(place, wanted.keys() - weights, weights.keys() - wanted, shapes)


def refuse_unfit(place: object, missing: Collection[str], unknown: Collection[str], shapes: Collection[str]) -> None:
    """Raise a FaapError that lists the names of weights that are wrong, if any are."""
    problems = {"missing": missing, "not of this model": unknown, "of the wrong shape": shapes}
    listed = [f"{', '.join(sorted(n)[:3])} ({len(n)} in all) {what}" for what, n in problems.items() if n]
    if listed:
        raise FaapError(f"{place}: the weights do not fit: {'; '.join(listed)}.")


def unwrapped(weights: Mapping[str, Tensor], known: str) -> dict[str, Tensor]:
    """Drop what wrappers put before every name (`module.`, `_orig_mod.`, `model.`), told by one name that is known."""
    found = [name for name in weights if name.endswith(f".{known}") and known not in weights]
    prefix = found[0].removesuffix(known) if found else ""
    return {name.removeprefix(prefix): value for name, value in weights.items()}


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash tensors, whatever file they came from: name, type, shape and bytes, to 64 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        _add(digest, name, tensor)
    return digest.hexdigest()


def content_sha256(content: Any, place: object = "") -> str:
    """Hash nested mappings and lists of tensors and plain values, whatever file they came from, to 64 hex digits.

    Raises:
        FaapError: a tensor is none that a file can hold in full; it names the place.
    """
    digest = hashlib.sha256()

    def add(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            _check_plain(name, value, place)
            _add(digest, name, value)
        elif isinstance(value, Mapping | list | tuple):
            digest.update(f"{name} holds {len(value)}\n".encode())
            for key, each in value.items() if isinstance(value, Mapping) else enumerate(value):
                add(repr(key), each)
        else:
            digest.update(f"{name} is {value!r}\n".encode())

    add("", content)
    return digest.hexdigest()


def _add(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
