"""The families of `transformers` that are loaded, a row each."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from faap.detectors.set_loss import ClassLoss


@dataclass(frozen=True)
class Family:
    """How the models of one `model_type` differ.

    Attributes:
        model: class in `transformers`.
        class_loss: see `Criterion`.
        aux: where the earlier layers' outputs come from: "replay" (the heads are put on the decoder's states here), the
            axis that the layers are on in what the library hands to its loss, or None: there are none.
        reads_mask: whether the model tells padding from image; one that does not sees each image cut out of the batch.
        normalises: whether its image processor normalises if it is not told.
        cut: its image processor cuts sides to multiples of this where it resizes by the edges.
        divisor: of its config, what must divide the sides of an image.
        clamp: see `Criterion`.
        centred: the boxes of its replayed layers are relative to its reference points.
    """

    model: str
    class_loss: ClassLoss
    aux: Literal["replay", 0, 1] | None
    reads_mask: bool = True
    normalises: bool = True
    cut: int = 1
    divisor: Callable[[Any], int] = lambda config: 1
    clamp: bool = False
    centred: bool = False


def _strides(config: Any) -> int:
    return int(max(config.feat_strides))


def _windows(config: Any) -> int:
    """Patches must fill the windows that the backbone's attention is cut into."""
    backbone = config.backbone_config
    sides = getattr(backbone, "num_windows_side", None) or backbone.num_windows
    patch = backbone.patch_size
    return int(sides * (patch if isinstance(patch, int) else math.lcm(*patch)))


def _real_time(model: str, clamp: bool = False) -> Family:
    return Family(model, "varifocal", 1, reads_mask=False, normalises=False, divisor=_strides, clamp=clamp)


FAMILIES = {
    "detr": Family("DetrForObjectDetection", "cross_entropy", "replay"),
    "conditional_detr": Family("ConditionalDetrForObjectDetection", "focal", "replay", centred=True),
    "dab-detr": Family("DabDetrForObjectDetection", "focal", 0),
    "deformable_detr": Family("DeformableDetrForObjectDetection", "focal", 0),
    "rt_detr": _real_time("RTDetrForObjectDetection"),
    "rt_detr_v2": _real_time("RTDetrV2ForObjectDetection"),
    "d_fine": _real_time("DFineForObjectDetection", clamp=True),
    "lw_detr": Family("LwDetrForObjectDetection", "quality", 0, divisor=_windows),
    "rf_detr": Family("RfDetrForObjectDetection", "quality", 0, divisor=_windows),
    "yolos": Family("YolosForObjectDetection", "cross_entropy", None, reads_mask=False, cut=16),
}

# the fields of `Criterion`, and what the families' configs call them
COEFFICIENTS = {
    "class_cost": ("class_cost", "matcher_class_cost"),
    "box_cost": ("bbox_cost", "matcher_bbox_cost"),
    "giou_cost": ("giou_cost", "matcher_giou_cost"),
    "cost_alpha": ("matcher_alpha",),
    "cost_gamma": ("matcher_gamma",),
    "class_weight": ("class_loss_coefficient", "weight_loss_vfl"),
    "box_weight": ("bbox_loss_coefficient", "weight_loss_bbox"),
    "giou_weight": ("giou_loss_coefficient", "weight_loss_giou"),
    "no_object_weight": ("eos_coefficient",),
    "alpha": ("focal_alpha", "focal_loss_alpha"),
    "gamma": ("focal_loss_gamma",),
}
