"""Checkpoints of the original DETR (`detr-r50-e632da11.pth` and its kin), loaded into the model of `transformers`."""

import argparse
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from faap.conform import conform
from faap.detectors.hugging_face import HuggingFaceDetector, assemble, try_out
from faap.errors import FaapError
from faap.files import read_tensors, read_text
from faap.weights import check_finite, unwrapped

# COCO's 91 ids as the original names its classes; ids that COCO never used stay unnamed
_COCO = Path(__file__).with_name("coco.classes.txt")

# name in the original, in which blocks and stages are counted from 0: name in transformers; one after the other
_RENAMES = {
    r"^backbone\.0\.body\.(conv|bn)0\.": r"model.backbone.model.embedder.embedder.\1.",
    r"^backbone\.0\.body\.layer(\d)\.(\d+)\.": r"model.backbone.model.encoder.stages.\1.layers.\2.",
    r"\.(conv|bn)(\d)\.": r".layer.\2.\1.",
    r"\.downsample\.0\.": ".shortcut.conv.",
    r"\.downsample\.1\.": ".shortcut.bn.",
    r"\.conv\.": ".convolution.",
    r"\.bn\.": ".normalization.",
    r"^input_proj\.": "model.input_projection.",
    r"^query_embed\.": "model.query_position_embeddings.",
    r"^transformer\.": "model.",
    r"\.multihead_attn\.": ".encoder_attn.",
    r"\.out_proj\.": ".o_proj.",
    r"\.linear([12])\.": r".mlp.fc\1.",
    r"\.decoder\.norm\.": ".decoder.layernorm.",
    r"\.norm1\.": ".self_attn_layer_norm.",
    r"(encoder\.layers\.\d+)\.norm2\.": r"\1.final_layer_norm.",
    r"\.norm2\.": ".encoder_attn_layer_norm.",
    r"\.norm3\.": ".final_layer_norm.",
    r"^class_embed\.": "class_labels_classifier.",
    r"^bbox_embed\.": "bbox_predictor.",
}

# where codes that came of DETR keep the weights, the first that is there; "" is the checkpoint itself
_AVERAGED = ("model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "ema")
_ENTRIES = ("model", *_AVERAGED, "state_dict", "model_state_dict", "module", "")

# what tells whose a checkpoint is that cannot be loaded here; the first that is found
_FOREIGN = {
    r"class_labels_classifier|query_position_embeddings": "a DETR in the names of transformers",
    r"bbox_attention|mask_head": "DETR for segmentation",
    r"transformer\.encoder\.norm\.": "a DETR of --pre_norm",
    r"enc_out_class_embed|backbone\.0\.projector": "LW-DETR or RF-DETR",
    r"label_enc.*|dn_|transformer\.tgt_embed": "DINO or DN-DETR",
    r"sampling_offsets.*|level_embed": "Deformable DETR",
    r"pre_bbox_head|lqe_layers|integral": "D-FINE",
    r"enc_score_head|dec_score_head|res_layers": "RT-DETR",
    r"ca_qcontent_proj": "Conditional DETR or DAB-DETR",
    r"refpoint_embed|ref_point_head": "DAB-DETR",
    r"det_token": "YOLOS",
    r"proposal_generator|bottom_up": "Detectron2",
    r"rpn\.|roi_heads|classification_head|backbone\.fpn": "torchvision",
    r"bbox_head|rpn_head|img_neck|neck\.": "MMDetection",
    r"(model\.)?\d+\.(conv|bn|cv\d|m)\.|dfl\.|dark\d": "YOLO",
    r"down8\.conv|down1\.net": "faap's generator, not of a detector",
}


def load_original(path: Path) -> HuggingFaceDetector:
    """Load a checkpoint of the original DETR.

    The architecture (ResNet depth, layers, widths, queries, classes) is read off the tensors. What tensors cannot tell
    comes from the checkpoint's `args` if it has them: the number of heads, 8 otherwise, and dilation (DC5), which
    otherwise is what the file's name says. The classes' names come from a text file NAME.classes.txt beside NAME.pth,
    one a line from class 0, if there is one; without it 91 classes have COCO's names, and others their numbers.

    Args:
        path: a `.pth` with tensors as `model`, `state_dict`, averaged (`model_ema`, `ema`) or by themselves, whose
            names may all begin with what a wrapper put there, and perhaps `args`.

    Returns:
        The prepared, frozen detector on the CPU, in float32.

    Raises:
        FaapError: a file cannot be read, the checkpoint holds more than tensors and plain values or is not this
            architecture, or there are more or fewer names than classes.
    """
    state, arguments = _read(path)
    content = _configuration(path, state, arguments)
    detector = assemble(path, content, _renamed(path, state), [path], path.stem, None)
    if arguments.get("dilation", "dc5" in path.name.lower()):
        _dilate(detector.model)
        try_out(detector, path)
    return detector


def _read(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Return a checkpoint's tensors without what wrappers put before their names, and its arguments."""
    try:
        content = read_tensors(path)
    except FaapError as error:
        yolo = re.search(r"GLOBAL (ultralytics|models\.(yolo|common)|yolox)", str(error))
        raise FaapError(f"{error} It is a checkpoint of YOLO, which is not supported.") if yolo else error from error
    conform(content, {str: object}, str(path))
    entry = next(name for name in _ENTRIES if not name or isinstance(content.get(name), Mapping))
    state = content[entry] if entry else content
    for inner in ("module", "state_dict", "shadow"):
        if isinstance(state.get(inner), Mapping):
            entry, state = f"{entry}.{inner}", state[inner]
    conform(state, {str: Tensor}, f"{path}: {entry}" if entry else f"{path} (no entry 'model' of tensors)")
    state = unwrapped(state, "query_embed.weight")
    # of an average and of a loss, which wrappers keep beside the model
    state = {name: value for name, value in state.items() if not re.search(r"(^|\.)n_averaged$|^criterion\.", name)}
    for pattern, family in _FOREIGN.items():
        if name := next((name for name in state if re.search(rf"(^|\.)({pattern})", name)), None):
            advice = "A .pth is read of the original DETR for detection alone; give a folder by save_pretrained."
            raise FaapError(f"{path}: is a checkpoint of {family}: it has a tensor {name}. {advice}")
    check_finite(state, path)
    if entry != "model":
        used = entry or "the file itself"
        warnings.warn(f"{path}: has no entry 'model'; the weights are those of {used!r}.", stacklevel=2)
    arguments = content.get("args")
    values = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    values = values if isinstance(values, Mapping) else {}
    conform(values, {"nheads?": int, "dilation?": bool}, f"{path}: args")
    return state, values


def _configuration(path: Path, state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config.json would say of the architecture that tensors have; what they contradict fails to load."""

    def count(pattern: str) -> int:
        return len({found[1] for name in state if (found := re.match(pattern, name))})

    def size(name: str, dimensions: int = 2) -> torch.Size:
        if name not in state or state[name].ndim != dimensions:
            raise FaapError(f"{path}: not a DETR that faap knows: it has no {name} of {dimensions} dimensions.")
        return state[name].shape

    body, (queries, width) = "backbone.0.body", size("query_embed.weight")
    stem, deep = size(f"{body}.conv1.weight", 4)[0], f"{body}.layer1.0.conv3.weight" in state
    heads = arguments.get("nheads", 8)
    if heads < 1 or width % heads:
        raise FaapError(f"{path}: args: nheads: is {heads}; it should divide the width {width}.")
    names = _names(path.with_suffix(".classes.txt"), size("class_embed.weight")[0] - 1)
    backbone: dict[str, Any] = {"model_type": "resnet", "embedding_size": stem, "out_features": ["stage4"]}
    backbone |= {"layer_type": "bottleneck" if deep else "basic"}
    backbone |= {"hidden_sizes": [stem * (4 if deep else 1) * 2**stage for stage in range(4)]}
    backbone |= {"depths": [count(rf"{body}\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]}
    content = {"model_type": "detr", "use_timm_backbone": False, "backbone_config": backbone}
    content |= {"num_queries": queries, "d_model": width, "id2label": dict(enumerate(names))}
    for side in ("encoder", "decoder"):
        layers = rf"transformer\.{side}\.layers\.(\d+)\."
        content |= {f"{side}_layers": count(layers), f"{side}_attention_heads": heads}
        content[f"{side}_ffn_dim"] = size(f"transformer.{side}.layers.0.linear1.weight")[0]
    return content


def _names(path: Path, classes: int) -> list[str]:
    if not path.is_file():
        coco = read_text(_COCO).splitlines()
        return coco if classes == len(coco) else [str(index) for index in range(classes)]
    names = [name.strip() for name in read_text(path).rstrip().splitlines()]
    if len(names) != classes:
        wanted = "it should hold one name a line from class 0, N/A for an unused one"
        raise FaapError(f"{path}: names {len(names)} classes, but the checkpoint beside it has {classes}; {wanted}")
    return names


def _dilate(model: Any) -> None:
    """Replace the last stage's stride by dilation, as torchvision does: its first block is not dilated yet."""
    for position, block in enumerate(model.model.backbone.model.encoder.stages[3].layers):
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
                if position and module.kernel_size == (3, 3):
                    module.dilation, module.padding = (2, 2), (2, 2)


def _renamed(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by their names in transformers, the fused projections of attention in their three parts."""
    weights: dict[str, Tensor] = {}
    for original, value in state.items():
        name, parts = original, {"": value}
        if found := re.fullmatch(r"(.*attn\.)in_proj_(weight|bias)", original):
            if not value.ndim or len(value) % 3:
                raise FaapError(f"{path}: {original} is of shape {tuple(value.shape)}, which has no three equal parts.")
            thirds = zip("qkv", value.tensor_split(3), strict=True)
            name, parts = found[1], {f"{part}_proj.{found[2]}": third for part, third in thirds}
        if original.startswith("backbone."):
            name = re.sub(r"(layer|conv|bn)(\d)", lambda found: f"{found[1]}{int(found[2]) - 1}", original)
        for pattern, replacement in _RENAMES.items():
            name = re.sub(pattern, replacement, name)
        for part, values in parts.items():
            if name + part in weights:
                raise FaapError(f"{path}: not a DETR that faap knows: it has {name + part} twice, once as {original}.")
            weights[name + part] = values.float()
    return weights
