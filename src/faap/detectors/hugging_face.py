"""Detectors stored as a directory of Hugging Face `transformers`: DETR and Conditional DETR."""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers.utils.logging
from torch import Tensor
from transformers import ConditionalDetrForObjectDetection, DetrForObjectDetection, PreTrainedModel

from faap.data.images import MEAN, STD, Preprocessing
from faap.detectors.base import DetectorOutput, FrozenDetector
from faap.detectors.prepare import prepare
from faap.errors import FaapError

FAMILIES: dict[str, Any] = {
    "detr": DetrForObjectDetection,
    "conditional_detr": ConditionalDetrForObjectDetection,
}


class HuggingFaceDetector(FrozenDetector):
    """DETR or Conditional DETR of `transformers`, with the outputs of every decoder layer.

    The model's class scores are a softmax with a trailing no-object class for DETR, and for a Conditional DETR whose
    config says `faap_softmax`: there the no-object class is counted in `num_labels`. Other Conditional DETRs have
    independent sigmoid scores.

    Args:
        model: a `DetrForObjectDetection` or `ConditionalDetrForObjectDetection` with `auxiliary_loss=False`.
        name: what to call the detector in reports.
        preprocessing: how an image becomes `pixel_values`.
        checkpoint_sha256: hex SHA-256 of the weights file.
    """

    def __init__(
        self, model: PreTrainedModel, *, name: str, preprocessing: Preprocessing, checkpoint_sha256: str
    ) -> None:
        config: Any = model.config
        # With auxiliary_loss the library feeds each layer's normalised state to the next layer, which DETR does not.
        assert not config.auxiliary_loss
        own_column = config.model_type == "detr"
        counted = not own_column and bool(getattr(config, "faap_softmax", False))
        classes = config.num_labels - counted
        super().__init__(
            model,
            name=name,
            labels={index: label for index, label in config.id2label.items() if index < classes},
            num_queries=config.num_queries,
            feature_dim=config.d_model,
            preprocessing=preprocessing,
            activation="softmax" if own_column or counted else "sigmoid",
            checkpoint_sha256=checkpoint_sha256,
        )

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> DetectorOutput:
        """Detect objects in a batch of normalised images; see `FrozenDetector.forward`."""
        model: Any = self.model
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        inner = model.model(pixel_values, pixel_mask=pixel_mask, output_hidden_states=True)
        # Of the decoder's input and its layers' states, the library normalises the last one only.
        earlier, last = inner.decoder_hidden_states[1:-1], inner.last_hidden_state
        states = torch.stack([*(model.model.decoder.layernorm(state) for state in earlier), last])
        logits = model.class_labels_classifier(states)  # (L, B, Q, C')
        boxes = model.bbox_predictor(states)  # (L, B, Q, 4)
        if model.config.model_type == "conditional_detr":
            centres = inner.reference_points.transpose(0, 1).logit(1e-5)  # (B, Q, 2)
            boxes = torch.cat([boxes[..., :2] + centres, boxes[..., 2:]], -1)
        boxes = boxes.sigmoid()
        aux = list(zip(logits[:-1], boxes[:-1], strict=True))
        return DetectorOutput(logits=logits[-1], boxes=boxes[-1], features=last, aux=aux)


def load_hugging_face(directory: Path, name: str | None = None) -> HuggingFaceDetector:
    """Load a detector from config.json, model.safetensors and preprocessor_config.json, without the network.

    Args:
        directory: holds the three files as `save_pretrained` writes them.
        name: what to call the detector in reports; the directory's name by default.

    Returns:
        The prepared, frozen detector on the CPU, in float32.

    Raises:
        FaapError: a file is missing or broken, the family is not supported, or weights and config disagree.
    """
    config = _read_json(directory / "config.json")
    family = config.get("model_type")
    if family not in FAMILIES:
        raise FaapError(
            f"{directory / 'config.json'}: model_type is {family!r}; supported are {', '.join(sorted(FAMILIES))}"
        )
    weights = directory / "model.safetensors"
    if not weights.is_file():
        raise FaapError(f"{weights}: no such file; a detector's weights must be in safetensors format")
    preprocessing = read_preprocessing(directory / "preprocessor_config.json")
    try:
        with _quiet():
            model, report = FAMILIES[family].from_pretrained(
                directory,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                auxiliary_loss=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    # Beyond its own errors the library lets through whatever a wrong value in config.json runs into.
    except Exception as error:
        raise FaapError(f"{directory}: cannot be loaded as {family}: {error}") from error
    problems = {
        "missing": sorted(report["missing_keys"]),
        # A training counter that frozen batch norm has no place for.
        "not of this model": sorted(k for k in report["unexpected_keys"] if not k.endswith("num_batches_tracked")),
        "of the wrong shape": sorted(str(entry[0]) for entry in report["mismatched_keys"]),
    }
    if any(problems.values()):
        listed = "; ".join(
            f"{', '.join(keys[:3])} ({len(keys)} in all) {what}" for what, keys in problems.items() if keys
        )
        raise FaapError(f"{weights}: the weights do not fit {directory / 'config.json'}: {listed}")
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return HuggingFaceDetector(
        prepare(model),
        name=name or directory.resolve().name,
        preprocessing=preprocessing,
        checkpoint_sha256=digest,
    )


def read_preprocessing(path: Path) -> Preprocessing:
    """Read image size, mean and standard deviation from a preprocessor_config.json.

    Args:
        path: the file; `size` may be {"shortest_edge", "longest_edge"} or, as in older files, a number with `max_size`
            beside it. `do_resize` false means that images keep their size.

    Returns:
        The preprocessing.

    Raises:
        FaapError: the file is missing, broken, or asks for something else.
    """
    config = _read_json(path)
    if not config.get("do_normalize", True):
        raise FaapError(f"{path}: do_normalize is false; only detectors of normalised images are supported")
    size = config.get("size")
    if not config.get("do_resize", True):
        edges: tuple[Any, Any] = (None, None)
    elif isinstance(size, dict):
        edges = (size.get("shortest_edge"), size.get("longest_edge"))
    else:
        edges = (size, config.get("max_size"))
    statistics = config.get("image_mean", list(MEAN)), config.get("image_std", list(STD))
    valid = all(edge is None or (type(edge) is int and edge > 0) for edge in edges)
    if not valid or (config.get("do_resize", True) and edges[0] is None):
        raise FaapError(
            f'{path}: size is {size!r}; it should be {{"shortest_edge": 800, "longest_edge": 1333}} or alike'
        )
    if not all(
        isinstance(values, list) and len(values) == 3 and all(isinstance(value, int | float) for value in values)
        for values in statistics
    ):
        raise FaapError(f"{path}: image_mean and image_std should be three numbers each, found {statistics}")
    mean, std = (tuple(float(value) for value in values) for values in statistics)
    return Preprocessing(*edges, mean=mean, std=std)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FaapError(
            f"{path}: {error.strerror}; a detector directory holds config.json, model.safetensors and "
            "preprocessor_config.json"
        ) from error
    except ValueError as error:
        raise FaapError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise FaapError(f"{path}: should hold a JSON object, found {type(content).__name__}")
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's progress bar and report off the terminal: what they say is raised as an error."""
    library: Any = transformers.utils.logging
    verbosity, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity(logging.CRITICAL)
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        if bars:
            library.enable_progress_bar()
