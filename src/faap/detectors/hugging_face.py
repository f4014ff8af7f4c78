"""Detectors stored as a directory of Hugging Face `transformers`: DETR and the families that came of it."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
import transformers.utils.logging
from torch import Tensor
from transformers import PreTrainedModel

from faap.data.images import Preprocessing
from faap.detectors.base import DetectorOutput, FrozenDetector
from faap.detectors.prepare import prepare
from faap.detectors.preprocessing import read_json, read_preprocessing
from faap.detectors.set_loss import SOFTMAX, Criterion
from faap.errors import FaapError


@dataclass(frozen=True)
class Family:
    """How the models of one `model_type` differ.

    Attributes:
        model: class in `transformers`.
        class_loss: see `Criterion`.
        layers: where the earlier layers' outputs come from: "replay" (the heads are put on the decoder's states here),
            "first" or "second" (the library hands them to its loss; which axis the layers are on) or "none".
        reads_mask: whether the model tells padding from image; one that does not sees each image cut out of the batch.
    """

    model: str
    class_loss: Literal["cross_entropy", "focal", "varifocal", "quality"]
    layers: Literal["replay", "first", "second", "none"]
    reads_mask: bool = True


FAMILIES = {
    "detr": Family("DetrForObjectDetection", "cross_entropy", "replay"),
    "conditional_detr": Family("ConditionalDetrForObjectDetection", "focal", "replay"),
    "dab-detr": Family("DabDetrForObjectDetection", "focal", "first"),
    "deformable_detr": Family("DeformableDetrForObjectDetection", "focal", "first"),
    "rt_detr": Family("RTDetrForObjectDetection", "varifocal", "second", reads_mask=False),
    "rt_detr_v2": Family("RTDetrV2ForObjectDetection", "varifocal", "second", reads_mask=False),
    "d_fine": Family("DFineForObjectDetection", "varifocal", "second", reads_mask=False),
    "lw_detr": Family("LwDetrForObjectDetection", "quality", "first"),
    "rf_detr": Family("RfDetrForObjectDetection", "quality", "first"),
    "yolos": Family("YolosForObjectDetection", "cross_entropy", "none", reads_mask=False),
}

_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
_INDEX = "model.safetensors.index.json"

# what the families' configs call the fields of `Criterion`
_COEFFICIENTS = {
    "class_cost": "class_cost",
    "bbox_cost": "box_cost",
    "giou_cost": "giou_cost",
    "class_loss_coefficient": "class_weight",
    "bbox_loss_coefficient": "box_weight",
    "giou_loss_coefficient": "giou_weight",
    "focal_alpha": "alpha",
    "eos_coefficient": "no_object_weight",
    "matcher_class_cost": "class_cost",
    "matcher_bbox_cost": "box_cost",
    "matcher_giou_cost": "giou_cost",
    "matcher_alpha": "cost_alpha",
    "matcher_gamma": "cost_gamma",
    "weight_loss_vfl": "class_weight",
    "weight_loss_bbox": "box_weight",
    "weight_loss_giou": "giou_weight",
    "focal_loss_alpha": "alpha",
    "focal_loss_gamma": "gamma",
}


class HuggingFaceDetector(FrozenDetector):
    """A DETR-like detector of `transformers`, with the outputs of every layer that its own loss looks at.

    The model's class scores are a softmax with a trailing no-object class for DETR and YOLOS, and for a Conditional
    DETR whose config says `faap_softmax`: there the no-object class is counted in `num_labels`. The others have
    independent sigmoid scores. The loss is the family's own, with its config's coefficients, as far as it is there in
    evaluation mode: no denoising queries, no groups of queries, no distillation between layers.

    Args:
        model: of one of the `FAMILIES`; DETR and Conditional DETR with `auxiliary_loss=False`, others that have layers
            with True.
        name: what to call the detector in reports.
        preprocessing: how an image becomes `pixel_values`.
        checkpoint_sha256: hex SHA-256 of the weights file.
    """

    def __init__(
        self, model: PreTrainedModel, *, name: str, preprocessing: Preprocessing, checkpoint_sha256: str
    ) -> None:
        config: Any = model.config
        family = FAMILIES[config.model_type]
        assert config.auxiliary_loss == _auxiliary(family)
        counted = config.model_type == "conditional_detr" and bool(getattr(config, "faap_softmax", False))
        coefficients = {field: getattr(config, key) for key, field in _COEFFICIENTS.items() if hasattr(config, key)}
        criterion = Criterion(family.class_loss, clamp=config.model_type == "d_fine", **coefficients)
        criterion = SOFTMAX if counted else criterion
        classes = config.num_labels - counted
        queries = getattr(config, "num_queries", None) or config.num_detection_tokens
        if getattr(config, "two_stage", False):
            queries = config.two_stage_num_proposals
        super().__init__(
            model,
            name=name,
            labels={index: label for index, label in config.id2label.items() if index < classes},
            num_queries=queries * (getattr(config, "num_patterns", 0) or 1),
            feature_dim=getattr(config, "d_model", None) or config.hidden_size,
            preprocessing=preprocessing,
            activation=criterion.activation,
            checkpoint_sha256=checkpoint_sha256,
            criterion=criterion,
        )
        self.family = family
        if family.layers != "replay":
            # The library hands all that a loss needs to its loss function: this one keeps it and computes nothing.
            library_model: Any = model
            library_model.loss_function = _keep

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> DetectorOutput:
        """Detect objects in a batch of normalised images; see `FrozenDetector.forward`."""
        if not self.family.reads_mask and pixel_mask is not None:
            if not pixel_mask.all():
                rows, columns = pixel_mask.any(2).sum(1).tolist(), pixel_mask.any(1).sum(1).tolist()
                images = zip(pixel_values, rows, columns, strict=True)
                return _together([self(image[None, :, :height, :width]) for image, height, width in images])
            pixel_mask = None
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        if self.family.layers == "replay":
            return self._replay(pixel_values, pixel_mask)
        model: Any = self.model
        out = model(pixel_values, labels=[], **({} if pixel_mask is None else {"pixel_mask": pixel_mask}))
        aux = []
        if self.family.layers != "none":
            kept = out.loss_dict
            axis = ("first", "second").index(self.family.layers)
            layers = zip(kept["logits"].unbind(axis), kept["boxes"].unbind(axis), strict=True)
            aux = [*kept["proposals"], *layers][:-1]
        # YOLOS's queries are the last of its tokens; elsewhere there are no others
        features = out.last_hidden_state[:, -self.num_queries :]
        return DetectorOutput(logits=out.logits, boxes=out.pred_boxes, features=features, aux=aux)

    def _replay(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> DetectorOutput:
        """Put the heads on every decoder state: with `auxiliary_loss` the library would change the states."""
        model: Any = self.model
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


def _keep(
    logits: Tensor,
    labels: object,
    device: object,
    boxes: Tensor,
    config: object,
    all_logits: Tensor | None = None,
    all_boxes: Tensor | None = None,
    enc_topk_logits: Tensor | None = None,
    enc_topk_bboxes: Tensor | None = None,
    **rest: object,
) -> tuple[None, dict[str, Any], None]:
    """Stand in for the library's loss function; what it gets comes back as the model's `loss_dict`."""
    proposals = [] if enc_topk_logits is None else [(enc_topk_logits, enc_topk_bboxes)]
    return None, {"logits": all_logits, "boxes": all_boxes, "proposals": proposals}, None


def _together(outputs: Sequence[DetectorOutput]) -> DetectorOutput:
    """Join outputs for one image each to one for the batch."""
    layers = zip(*(out.aux for out in outputs), strict=True)
    return DetectorOutput(
        torch.cat([out.logits for out in outputs]),
        torch.cat([out.boxes for out in outputs]),
        torch.cat([out.features for out in outputs]),
        [(torch.cat([layer[0] for layer in same]), torch.cat([layer[1] for layer in same])) for same in layers],
    )


def _auxiliary(family: Family) -> bool:
    """Whether the library needs `auxiliary_loss` to hand out earlier layers, and computes the same with it."""
    return family.layers in ("first", "second")


def load_hugging_face(directory: Path, name: str | None = None) -> HuggingFaceDetector:
    """Load a detector from config.json, model.safetensors and preprocessor_config.json, without the network.

    Args:
        directory: holds the three files as `save_pretrained` writes them; the weights may be in several files with a
            model.safetensors.index.json.
        name: what to call the detector in reports; the directory's name by default.

    Returns:
        The prepared, frozen detector on the CPU, in float32.

    Raises:
        FaapError: a file is missing or broken, the family is not supported or needs a package that is not installed,
            or weights and config disagree.
    """
    kind = read_json(directory / "config.json").get("model_type")
    if kind not in FAMILIES:
        raise FaapError(
            f"{directory / 'config.json'}: model_type is {kind!r}; supported are {', '.join(sorted(FAMILIES))}"
        )
    family = FAMILIES[kind]
    model_class: Any = getattr(transformers, family.model, None)
    if model_class is None:
        raise FaapError(
            f"{directory / 'config.json'}: model_type is {kind!r}, which transformers {transformers.__version__} does "
            "not have; a newer one does: pip install -U transformers"
        )
    weights = _weights(directory)
    preprocessing = read_preprocessing(directory / "preprocessor_config.json", kind)
    try:
        with _quiet():
            model, report = model_class.from_pretrained(
                directory,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                auxiliary_loss=_auxiliary(family),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except ImportError as error:
        package = "timm" if "timm" in str(error) else "torchvision"
        raise FaapError(
            f"{directory}: its config.json asks for a backbone of {package}, which is not installed: pip install "
            f"{package}"
        ) from error
    # Beyond its own errors the library lets through whatever a wrong value in config.json runs into.
    except Exception as error:
        raise FaapError(f"{directory}: cannot be loaded as {kind}: {error}") from error
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
        raise FaapError(f"{weights[0]}: the weights do not fit {directory / 'config.json'}: {listed}")
    digest = hashlib.sha256()
    for path in weights:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return HuggingFaceDetector(
        prepare(model),
        name=name or directory.resolve().name,
        preprocessing=preprocessing,
        checkpoint_sha256=digest.hexdigest(),
    )


def download(name: str) -> Path:
    """Fetch a detector's three files from the Hugging Face hub, or find them in its cache.

    Args:
        name: "organisation/model".

    Returns:
        The directory that holds them.

    Raises:
        FaapError: there is no such model, or the hub cannot be reached and the cache does not have it.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[*_FILES, _INDEX, "model-*-of-*.safetensors"]))
    # of the hub, the network and the file system
    except Exception as error:
        raise FaapError(
            f"detector {name} is no file or directory here, and cannot be had from the Hugging Face hub: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error


def _weights(directory: Path) -> list[Path]:
    """Name the files that hold a detector's weights."""
    whole, index = directory / "model.safetensors", directory / _INDEX
    if not whole.is_file() and index.is_file():
        parts = read_json(index).get("weight_map")
        if not isinstance(parts, dict):
            raise FaapError(f"{index}: has no weight_map, which should name the file of each weight")
        files = [directory / str(part) for part in sorted(set(parts.values()))]
    else:
        files = [whole]
    for file in files:
        if not file.is_file():
            raise FaapError(f"{file}: no such file; a detector's weights must be in safetensors format")
    return files


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
