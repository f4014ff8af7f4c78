"""Checkpoints of the original DETR (`detr-r50-e632da11.pth` and its kin), loaded into the model of `transformers`."""

import argparse
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

from faap.conform import conform
from faap.data.images import Preprocessing
from faap.detectors.hugging_face import HuggingFaceDetector, tried
from faap.detectors.prepare import prepare
from faap.errors import FaapError
from faap.files import file_sha256, read_tensors, read_text
from faap.weights import check_finite, check_fit, unwrapped

# COCO's 91 ids as the original names its classes; ids that COCO never used stay unnamed
_COCO = (
    "N/A|person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant|N/A|stop sign|"
    "parking meter|bench|bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe|N/A|backpack|umbrella|N/A|N/A|"
    "handbag|tie|suitcase|frisbee|skis|snowboard|sports ball|kite|baseball bat|baseball glove|skateboard|surfboard|"
    "tennis racket|bottle|N/A|wine glass|cup|fork|knife|spoon|bowl|banana|apple|sandwich|orange|broccoli|carrot|"
    "hot dog|pizza|donut|cake|chair|couch|potted plant|bed|N/A|dining table|N/A|N/A|toilet|N/A|tv|laptop|mouse|"
    "remote|keyboard|cell phone|microwave|oven|toaster|sink|refrigerator|N/A|book|clock|vase|scissors|teddy bear|"
    "hair drier|toothbrush"
)
COCO_CLASSES = _COCO.split("|")

_BODY, _NORM = r"backbone\.0\.body\.", r"(weight|bias|running_mean|running_var)"
_LAYER, _DECODER = r"transformer\.(encoder|decoder)\.layers\.(\d+)\.", r"transformer\.(decoder)\.layers\.(\d+)\."
# name in the original: name in transformers; the projections that the original fuses are split before
_RENAMES = {
    rf"{_BODY}conv1\.weight": r"model.backbone.model.embedder.embedder.convolution.weight",
    rf"{_BODY}bn1\.{_NORM}": r"model.backbone.model.embedder.embedder.normalization.\1",
    rf"{_BODY}layer(\d)\.(\d+)\.conv(\d)\.weight": r"{stage}.layer.{part}.convolution.weight",
    rf"{_BODY}layer(\d)\.(\d+)\.bn(\d)\.{_NORM}": r"{stage}.layer.{part}.normalization.\4",
    rf"{_BODY}layer(\d)\.(\d+)\.downsample\.0\.weight": r"{stage}.shortcut.convolution.weight",
    rf"{_BODY}layer(\d)\.(\d+)\.downsample\.1\.{_NORM}": r"{stage}.shortcut.normalization.\3",
    r"input_proj\.(weight|bias)": r"model.input_projection.\1",
    r"query_embed\.weight": r"model.query_position_embeddings.weight",
    rf"{_LAYER}self_attn\.(.)_proj\.(.*)": r"{layer}.self_attn.\3_proj.\4",
    rf"{_DECODER}multihead_attn\.(.)_proj\.(.*)": r"{layer}.encoder_attn.\3_proj.\4",
    rf"{_LAYER}linear([12])\.(.*)": r"{layer}.mlp.fc\3.\4",
    rf"{_LAYER}norm1\.(.*)": r"{layer}.self_attn_layer_norm.\3",
    r"transformer\.(encoder)\.layers\.(\d+)\.norm2\.(.*)": r"{layer}.final_layer_norm.\3",
    rf"{_DECODER}norm2\.(.*)": r"{layer}.encoder_attn_layer_norm.\3",
    rf"{_DECODER}norm3\.(.*)": r"{layer}.final_layer_norm.\3",
    r"transformer\.decoder\.norm\.(.*)": r"model.decoder.layernorm.\1",
    r"class_embed\.(.*)": r"class_labels_classifier.\1",
    r"bbox_embed\.layers\.(\d)\.(.*)": r"bbox_predictor.layers.\1.\2",
}

# where codes that came of DETR keep the weights, the first that is there; "" is the checkpoint itself
_ENTRIES = ("model", "model_ema", "ema_model", "ema_state_dict", "ema", "state_dict", "model_state_dict", "module", "")

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
    weights = {_rename(path, name): value.float() for name, value in _split(path, state).items()}
    config, dilated = _configure(path, state, arguments)
    try:
        with torch.device("meta"):
            wanted = DetrForObjectDetection(config).state_dict()
    # the library is asked for what the tensors say, and answers with errors of many kinds
    except Exception as error:
        raise FaapError(f"{path}: its tensors do not make a DETR: {error}") from error
    check_fit(weights, wanted, f"{path}: not a DETR that faap knows")

    def build() -> HuggingFaceDetector:
        model = DetrForObjectDetection(config)
        model.load_state_dict(weights)
        if dilated:
            _dilate(model)
        return HuggingFaceDetector(
            prepare(model), name=path.stem, preprocessing=Preprocessing(), file_sha256=file_sha256(path)
        )

    return tried(path, build)


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
    place = f"{path}: {entry}" if entry else f"{path} (no entry 'model' of tensors)"
    conform(state, {str: Tensor}, place)
    state = unwrapped(state, "query_embed.weight")
    for pattern, family in _FOREIGN.items():
        if name := next((name for name in state if re.search(rf"(^|\.)({pattern})", name)), None):
            raise FaapError(
                f"{path}: is a checkpoint of {family}: it has a tensor {name}. A .pth is read of the original DETR for "
                "detection alone; other families are read from a folder that save_pretrained of transformers writes."
            )
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    check_finite(state, path)
    if entry != "model":
        warnings.warn(
            f"{path}: has no entry 'model'; the weights are those of {entry or 'the file itself'!r}.", stacklevel=2
        )
    arguments = content.get("args")
    values = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    values = values if isinstance(values, Mapping) else {}
    conform(values, {"nheads?": int, "dilation?": bool}, f"{path}: args")
    return state, values


def _configure(path: Path, state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> tuple[DetrConfig, bool]:
    """Return the architecture that tensors have, and whether its last stage is dilated."""

    def count(pattern: str) -> int:
        return len({found[1] for name in state if (found := re.match(pattern, name))})

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in state or state[name].ndim != dimensions or 0 in state[name].shape:
            raise FaapError(f"{path}: not a DETR that faap knows: missing {name}, of {dimensions} dimensions.")
        return tuple(state[name].shape)

    stem, body = "backbone.0.body.conv1.weight", r"backbone\.0\.body\.layer"
    deep = "backbone.0.body.layer1.0.conv3.weight" in state
    last = 3 if deep else 2
    queries, width = shape("query_embed.weight", 2)
    names = _names(path.with_suffix(".classes.txt"), shape("class_embed.weight", 2)[0] - 1)
    heads = arguments.get("nheads", 8)
    if heads < 1 or width % heads:
        raise FaapError(f"{path}: args: nheads: is {heads}; it should divide the width {width}.")
    options: dict[str, Any] = {"use_timm_backbone": False} | {
        f"{side}_{what}": value
        for side in ("encoder", "decoder")
        for what, value in (
            ("layers", count(rf"transformer\.{side}\.layers\.(\d+)\.")),
            ("ffn_dim", shape(f"transformer.{side}.layers.0.linear1.weight", 2)[0]),
            ("attention_heads", heads),
        )
    }
    last_stage: dict[str, Any] = {"out_features": ["stage4"]}
    backbone = ResNetConfig(
        num_channels=shape(stem, 4)[1],
        embedding_size=shape(stem, 4)[0],
        hidden_sizes=[shape(f"backbone.0.body.layer{stage}.0.conv{last}.weight", 4)[0] for stage in (1, 2, 3, 4)],
        depths=[count(rf"{body}{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)],
        layer_type="bottleneck" if deep else "basic",
        **last_stage,
    )
    config = DetrConfig(
        backbone_config=backbone,
        num_queries=queries,
        d_model=width,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        **options,
    )
    return config, arguments.get("dilation", "dc5" in path.name.lower())


def _names(path: Path, classes: int) -> list[str]:
    if not path.is_file():
        return COCO_CLASSES if classes == len(COCO_CLASSES) else [str(index) for index in range(classes)]
    names = [name.strip() for name in read_text(path).splitlines()]
    if len(names) != classes:
        raise FaapError(
            f"{path}: names {len(names)} classes, but the checkpoint beside it has {classes}; it should hold one name "
            "a line from class 0, N/A for a class that is not used"
        )
    return names


def _dilate(model: Any) -> None:
    """Replace the last stage's stride by dilation, as torchvision does: its first block is not dilated yet."""
    blocks = model.model.backbone.model.encoder.stages[3].layers
    for position, block in enumerate(blocks):
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
                if position and module.kernel_size == (3, 3):
                    module.dilation, module.padding = (2, 2), (2, 2)


def _split(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split the fused projections of attention, and name the parts."""
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        if found := re.fullmatch(r"(.*attn)\.in_proj_(weight|bias)", name):
            if value.ndim == 0 or len(value) % 3 or not len(value):
                raise FaapError(f"{path}: {name} is of shape {tuple(value.shape)}; it should be of three equal parts.")
            for part, values in zip("qkv", value.chunk(3), strict=True):
                result[f"{found[1]}.{part}_proj.{found[2]}"] = values
        else:
            result[re.sub(r"attn\.out_proj\.", "attn.o_proj.", name)] = value
    return result


def _rename(path: Path, name: str) -> str:
    for pattern, replacement in _RENAMES.items():
        if found := re.fullmatch(pattern, name):
            words = found.expand(replacement)
            if "{layer}" in words:
                return words.replace("{layer}", f"model.{found[1]}.layers.{found[2]}")
            if "{stage}" in words:
                stage = f"model.backbone.model.encoder.stages.{int(found[1]) - 1}.layers.{found[2]}"
                words = words.replace("{stage}", stage)
                return words.replace("{part}", str(int(found[3]) - 1)) if "{part}" in words else words
            return words
    raise FaapError(f"{path}: not a DETR that faap knows: it has a tensor {name}.")
