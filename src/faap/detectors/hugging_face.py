"""Detectors stored as a directory of Hugging Face `transformers`: DETR and the families that came of it."""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import torch
import transformers
import transformers.utils.logging
from accelerate.utils import concatenate
from torch import Tensor, nn
from transformers import PreTrainedModel

from faap.conform import Between, conform
from faap.data.images import Preprocessing
from faap.detectors.base import DetectorOutput, FrozenDetector
from faap.detectors.families import COEFFICIENTS, FAMILIES
from faap.detectors.prepare import prepare
from faap.detectors.preprocessing import read_preprocessing
from faap.detectors.set_loss import SOFTMAX, Criterion
from faap.errors import FaapError
from faap.files import file_sha256, read_json, read_safetensors, read_tensors, reading
from faap.weights import a_weight, check_finite, refuse_unfit

# a detector's weights, or those of older versions of `transformers`; beside each its index where they are in several
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"
FILES = ["config.json", "preprocessor_config.json", _WEIGHTS[0], _WEIGHTS[0] + _INDEX, "model-*-of-*.safetensors"]
OLDER_FILES = [_WEIGHTS[1], _WEIGHTS[1] + _INDEX, "pytorch_model-*-of-*.bin"]


class HuggingFaceDetector(FrozenDetector):
    """A DETR-like detector of `transformers`, with the outputs of every layer that its own loss looks at.

    The model's class scores are a softmax with a trailing no-object class for DETR and YOLOS, and for a Conditional
    DETR whose config says `faap_softmax`: there the no-object class is counted in `num_labels`. The others have
    independent sigmoid scores. The loss is the family's own, with its config's coefficients, as far as it is there in
    evaluation mode: no denoising queries, no groups of queries, no distillation between layers.

    Args:
        model: of one of the `FAMILIES`; its config's `auxiliary_loss` is set to what hands out the earlier layers.
        name: what to call the detector in reports.
        preprocessing: how an image becomes `pixel_values`.
        file_sha256: hex SHA-256 of the weights file.
    """

    model: Any  # whose types say less than is known here

    def __init__(self, model: PreTrainedModel, *, name: str, preprocessing: Preprocessing, file_sha256: str) -> None:
        config: Any = model.config
        family = FAMILIES[config.model_type]
        classes, criterion = config.num_labels, SOFTMAX
        if family.class_loss == "focal" and getattr(config, "faap_softmax", False):
            classes -= 1
        else:
            names = [(field, key) for field, keys in COEFFICIENTS.items() for key in keys if hasattr(config, key)]
            coefficients = {field: getattr(config, key) for field, key in names}
            criterion = Criterion(family.class_loss, clamp=family.clamp, **coefficients)
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
            file_sha256=file_sha256,
            criterion=criterion,
        )
        self.family, self.divisor = family, family.divisor(config)
        config.auxiliary_loss = family.aux in (0, 1)
        self._padded = True
        if family.aux == "replay":
            for part in (self.model.model.encoder, self.model.model.decoder):
                part.register_forward_pre_hook(self._with_mask, with_kwargs=True)
        else:
            # The library hands all that a loss needs to its loss function: this one keeps it and computes nothing.
            self.model.loss_function = _capture_loss_inputs

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> DetectorOutput:
        """Detect objects in a batch of normalised images; see `FrozenDetector.forward`."""
        if not self.family.reads_mask and pixel_mask is not None:
            if not pixel_mask.all():
                rows, columns = pixel_mask.any(2).sum(1).tolist(), pixel_mask.any(1).sum(1).tolist()
                images = zip(pixel_values, rows, columns, strict=True)
                alone = [self(image[None, :, :height, :width]) for image, height, width in images]
                return DetectorOutput(*concatenate([tuple(vars(out).values()) for out in alone]))
            pixel_mask = None
        height, width = pixel_values.shape[2:]
        if height % self.divisor or width % self.divisor:
            found = f"found one of {width}x{height} pixels; set size in its preprocessor_config.json"
            raise FaapError(f"{self.name} takes images whose sides are multiples of {self.divisor}; {found}")
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        if self.family.aux == "replay":
            return self._replay(pixel_values, pixel_mask)
        out = self.model(pixel_values, labels=[], **({} if pixel_mask is None else {"pixel_mask": pixel_mask}))
        aux = []
        if (axis := self.family.aux) is not None:
            logits, boxes = out.loss_dict["layers"]
            layers = zip(logits.unbind(axis), boxes.unbind(axis), strict=True)
            aux = [*out.loss_dict["proposals"], *layers][:-1]
        # YOLOS's queries are the last of its tokens; elsewhere there are no others
        features = out.last_hidden_state[:, -self.num_queries :]
        return DetectorOutput(logits=out.logits, boxes=out.pred_boxes, features=features, aux=aux)

    def _replay(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> DetectorOutput:
        """Put the heads on every decoder state: with `auxiliary_loss` the library would change the states."""
        model, self._padded = self.model, pixel_mask is not None
        inner = model.model(pixel_values, pixel_mask=pixel_mask, output_hidden_states=True)
        self._padded = True  # for whoever calls the library's model directly
        # Of the decoder's input and its layers' states, the library normalises the last one only.
        earlier, last = inner.decoder_hidden_states[1:-1], inner.last_hidden_state
        states = torch.stack([*(model.model.decoder.layernorm(state) for state in earlier), last])
        logits = model.class_labels_classifier(states)  # (L, B, Q, C')
        boxes = model.bbox_predictor(states)  # (L, B, Q, 4)
        if self.family.centred:
            centres = inner.reference_points.transpose(0, 1).logit(1e-5)  # (B, Q, 2)
            boxes = torch.cat([boxes[..., :2] + centres, boxes[..., 2:]], -1)
        boxes = boxes.sigmoid()
        aux = list(zip(logits[:-1], boxes[:-1], strict=True))
        return DetectorOutput(logits=logits[-1], boxes=boxes[-1], features=last, aux=aux)

    def _with_mask(self, part: nn.Module, args: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Give a part of the model the mask as attention takes it, or none where nothing is padded.

        The library itself would look whether any of it is False, and wait for the device to know.
        """
        name = "attention_mask" if part is self.model.model.encoder else "encoder_attention_mask"
        mask: Any = named.get(name)
        if not self._padded or mask is None:
            mask = None
        elif self.model.config._attn_implementation == "sdpa" and _TAKES_MASKS in vars(sys.modules[part.__module__]):
            mask = mask[:, None, None].bool()  # (B, 1, 1, positions)
        return args, named | {name: mask}


# the library's function that lets through a mask that is ready; its first versions have another
_TAKES_MASKS = "create_bidirectional_mask"


def _capture_loss_inputs(*given: Any, **named: Any) -> tuple[None, dict[str, Any], None]:
    """Stand in for the library's loss function; the layers that it gets come back as the model's `loss_dict`."""
    proposals = given[7:9] or (named.get("enc_topk_logits"), named.get("enc_topk_bboxes"))
    return None, {"layers": given[5:7], "proposals": [] if proposals[0] is None else [proposals]}, None


def load_hugging_face(directory: Path, name: str | None = None) -> HuggingFaceDetector:
    """Load a detector from config.json, model.safetensors and preprocessor_config.json, without the network.

    Args:
        directory: holds the three files as `save_pretrained` writes them; the weights may be in several files with a
            model.safetensors.index.json, or in the pytorch_model.bin of its older versions.
        name: what to call the detector in reports; the directory's name by default.

    Returns:
        The prepared, frozen detector on the CPU, in float32.

    Raises:
        FaapError: a file is missing or broken, the model is of no supported family, or weights and config.json do not
            fit together.
    """
    source = directory / "config.json"
    content, files = _read_config(source), _weight_files(directory)
    weights = {key: value for path in files for key, value in _read_weights(path).items()}
    images, name = directory / "preprocessor_config.json", name or directory.resolve().name
    return assemble(source, content, weights, files, name, images)


def assemble(
    source: Path, content: dict[str, Any], weights: dict[str, Tensor], files: list[Path], name: str, images: Path | None
) -> HuggingFaceDetector:
    """Build, prepare and try out a detector.

    Args:
        source: the file that says what it is, for messages.
        content: what a config.json says.
        weights: by the names of `transformers`.
        files: those that the weights are from.
        name: what to call the detector in reports.
        images: its preprocessor_config.json; None: DETR's.

    Raises:
        FaapError: weights and configuration do not fit together, or make no detector that runs.
    """
    kind = content["model_type"]
    model_class: Any = getattr(transformers, FAMILIES[kind].model, None)
    if model_class is None:
        lacking = f"which transformers {transformers.__version__} does not have; a newer one does"
        raise FaapError(f"{source}: model_type is {kind!r}, {lacking}: pip install -U transformers")
    with reading(source, f"cannot be loaded as {kind}"), _quiet_and_alone():
        try:
            config = model_class.config_class.from_dict(content)
            with torch.device("meta"):
                size = sum(value.numel() for value in model_class(config).parameters())
            held = sum(value.numel() for value in weights.values())
            if size > 2 * held + 1000:
                raise ValueError(f"it describes {size} weights, and the files hold {held}")
            options = {"dtype": torch.float32, "ignore_mismatched_sizes": True, "output_loading_info": True}
            model, report = model_class.from_pretrained(None, config=config, state_dict=weights, **options)
        except ImportError as error:
            package = "timm" if "timm" in str(error) else "torchvision"
            advice = f"which is not installed: pip install {package}"
            raise FaapError(f"{source}: asks for a backbone of {package}, {advice}") from error
    # frozen batch norm has no place for a training counter
    unknown = [key for key in report["unexpected_keys"] if not key.endswith("num_batches_tracked")]
    shapes = [str(name) for name, *_ in report["mismatched_keys"]]
    place = f"{files[0]} (as a {kind} of {config.num_labels} classes, by {source.name})"
    refuse_unfit(place, report["missing_keys"], unknown, shapes)
    with reading(source, "makes no detector that runs"):
        preprocessing = Preprocessing() if images is None else read_preprocessing(images, kind, config)
        identity = file_sha256(*files)
        detector = HuggingFaceDetector(prepare(model), name=name, preprocessing=preprocessing, file_sha256=identity)
        try_out(detector, source)
    return detector


# pixels: a side where images keep their size, and the longest where a config asks for more
_TRIAL_EDGE, _LARGEST_TRIAL = 640, 1344


@torch.no_grad()
def try_out(detector: FrozenDetector, source: object) -> None:
    """Let a detector look at a grey image, so that whatever is wrong with it is known now."""
    conform(detector.labels, {int: str}, f"{source}: labels")
    classes = max(detector.labels, default=-1) + 1 + (detector.activation == "softmax")
    own = detector.preprocessing
    wanted = own.pad_size or own.size or (own.shortest_edge or _TRIAL_EDGE,) * 2
    height, width = (max(1, min(side, _LARGEST_TRIAL) // own.multiple) * own.multiple for side in wanted)
    out = detector(torch.zeros(1, 3, height, width, dtype=torch.float32, device=a_weight(detector).device))
    if not isinstance(out, DetectorOutput):
        raise FaapError(f"{source}: gives a {type(out).__name__}; it should be a faap.detectors.DetectorOutput.")
    shapes = [tuple(values.shape) for values in (out.logits, out.boxes, out.features)]
    first = shapes[0][:-1]
    if len(first) != 2 or shapes[0][-1] < classes or shapes[1:] != [(*first, 4), (*first, detector.feature_dim)]:
        right = (
            f"(1, Q, {classes} or more), (1, Q, 4) and (1, Q, {detector.feature_dim}), by its labels and feature_dim"
        )
        raise FaapError(f"{source}: its logits, boxes and features have the shapes {shapes}; they should be {right}.")
    detector.detections(out, torch.tensor([[height, width]]))
    if not all(bool(values.isfinite().all()) for values in (out.logits, out.boxes, out.features)):
        raise FaapError(f"{source}: makes a detector whose outputs for a grey image are NaN or infinite.")


# What faap itself reads of a config.json; the rest is the library's to judge.
_CONFIG: dict[str, Any] = {
    "model_type": str,
    "id2label?": {str: (str, int)},
    **{f"{key}?": float for keys in COEFFICIENTS.values() for key in keys},
    "faap_softmax?": bool,
    "backbone_config?": dict,
}
# No model is as deep as the first, nor has a number that is larger than the second.
_MOST_LAYERS, _MOST = 1000, 10**6


def _read_config(path: Path) -> dict[str, Any]:
    """Read a config.json without what asks for code or for models from elsewhere."""
    with reading(path, "is no configuration of a detector"):  # one that is nested too deep
        content: dict[str, Any] = _sane(read_json(path), str(path), "")
    conform({key: value for key, value in content.items() if value is not None}, _CONFIG, str(path))
    if (kind := content["model_type"]) not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise FaapError(f"{path}: model_type is {kind!r}, which is not supported; supported are {known}")
    if content.get("quantization_config"):
        raise FaapError(f"{path}: has a quantization_config; quantised weights are not supported.")
    if given := content.get("id2label"):
        if wrong := [key for key in given if not re.fullmatch(r"\d{1,6}", key)]:
            raise FaapError(f'{path}: id2label: has {wrong[0]!r} as a key; it should be as in {{"0": "person"}}.')
        names = {int(key): str(label) for key, label in given.items()}
        # classes that are left out of the names are there all the same
        names = {index: names.get(index, "N/A") for index in range(max(names) + 1)}
        content |= {"id2label": names, "label2id": {label: index for index, label in names.items()}}
        content.pop("num_labels", None)
    return content


def _sane(value: Any, place: str, key: str) -> Any:
    if isinstance(value, dict):
        # `auto_map` and the like name code, `…_implementation` kernels that the library would fetch from the hub
        kept = {name: each for name, each in value.items() if name != "auto_map" and "implementation" not in name}
        return {name: _sane(each, f"{place}: {name}", name) for name, each in kept.items()}
    if isinstance(value, list):
        return [_sane(each, place, key) for each in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        most = _MOST_LAYERS if re.search("layers|blocks|depths|levels|group", key) else _MOST
        conform(value, Between(-most, most), place)
    if key == "backbone" and isinstance(value, str) and not re.fullmatch(r"[\w.]+", value):
        raise FaapError(f"{place}: is {value!r}; it should be the name of a timm model: nothing is fetched for it.")
    return value


def _weight_files(directory: Path) -> list[Path]:
    """Name the files that hold a detector's weights."""
    there = [name for name in _WEIGHTS if (directory / name).is_file() or (directory / (name + _INDEX)).is_file()]
    whole = directory / (there or _WEIGHTS)[0]
    index, files = whole.with_name(whole.name + _INDEX), [whole]
    if not whole.is_file() and index.is_file():
        content = read_json(index)
        conform(content, {"weight_map": {str: str}}, str(index))
        files = [directory / Path(part).name for part in sorted(set(content["weight_map"].values()))] or files
    for file in files:
        if not file.is_file():
            advice = "are in safetensors format, as save_pretrained of transformers writes them, or a pytorch_model.bin"
            raise FaapError(f"{file}: no such file; a detector's weights {advice}")
    return files


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of weights; of a pickled one nothing but tensors."""
    if path.suffix != ".bin":
        return read_safetensors(path)
    weights = read_tensors(path)
    conform(weights, {str: Tensor}, str(path))
    check_finite(weights, path)
    return dict(weights)


@contextmanager
def _quiet_and_alone() -> Iterator[None]:
    """Keep the library's bar and report off the terminal, since faap says it, and the library off the network."""
    library: Any = transformers.utils.logging
    hub: Any = huggingface_hub.constants
    with ExitStack() as afterwards:
        afterwards.callback(library.set_verbosity, library.get_verbosity())
        afterwards.callback(setattr, hub, "HF_HUB_OFFLINE", hub.HF_HUB_OFFLINE)
        if library.is_progress_bar_enabled():
            afterwards.callback(library.enable_progress_bar)
        library.set_verbosity(logging.CRITICAL)
        library.disable_progress_bar()
        hub.HF_HUB_OFFLINE = True
        yield
