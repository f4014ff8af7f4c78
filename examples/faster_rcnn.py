"""A detector of your own in front of faap: torchvision's Faster R-CNN.

    pip install torchvision
    .venv/bin/faap train infonce_4th --dataset_root data --detr_checkpoint examples.faster_rcnn:build

Its "queries" are the region proposals with the best objectness. It has no decoder: `features` are what the class head
reads of each proposal. Where DETR has one box for each object, Faster R-CNN has many, and non-maximum suppression
afterwards: so `detections` and `loss` are its own here, and everything else is faap's.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection import FasterRCNN, FasterRCNN_ResNet50_FPN_Weights, fasterrcnn_resnet50_fpn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, box_convert, box_iou, clip_boxes_to_image

from faap.data import MEAN, STD, Preprocessing
from faap.detectors import DetectorOutput, FrozenDetector, RawDetections


class FasterRcnnDetector(FrozenDetector):
    """Faster R-CNN as a `FrozenDetector`.

    Args:
        model: of torchvision; its own resizing and normalisation are not used, faap's `preprocessing` does the same.
        names: of its classes, without the background.
        queries: Q, proposals an image.
        preprocessing: how images are resized and normalised.
    """

    def __init__(
        self, model: FasterRCNN, names: Sequence[str], queries: int = 300, preprocessing: Preprocessing | None = None
    ) -> None:
        model.rpn._post_nms_top_n["testing"] = queries
        super().__init__(
            model,
            name="faster_rcnn",
            labels=dict(enumerate(names)),
            num_queries=queries,
            feature_dim=model.roi_heads.box_head.fc7.out_features,
            preprocessing=preprocessing or Preprocessing(800, 1333, MEAN, STD),
            activation="softmax",
            file_sha256="",
        )
        self.file_sha256 = self.tensors_sha256()  # no file: the weights come from torchvision's cache

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> DetectorOutput:
        """Score and refine the best proposals; see `FrozenDetector.forward`."""
        batch, _, height, width = pixel_values.shape
        sizes = [(height, width)] * batch
        if pixel_mask is not None:
            sizes = list(zip(pixel_mask.any(2).sum(1).tolist(), pixel_mask.any(1).sum(1).tolist(), strict=True))
        padded = F.pad(pixel_values, (0, -width % 32, 0, -height % 32))
        features = self.model.backbone(padded)
        proposals, _ = self.model.rpn(ImageList(padded, sizes), features)
        heads = self.model.roi_heads
        states = heads.box_head(heads.box_roi_pool(features, proposals, sizes))
        logits, shifts = heads.box_predictor(states)
        boxes = heads.box_coder.decode(shifts, proposals)[:, 1:]  # (N, C, 4) xyxy in pixels, without the background
        best = logits[:, 1:].argmax(1)
        boxes = boxes[torch.arange(len(boxes), device=boxes.device), best]
        logits = logits.roll(-1, 1)  # faap wants no-object last, torchvision has the background first
        counts = [len(each) for each in proposals]
        rows = zip(logits.split(counts), boxes.split(counts), states.split(counts), sizes, strict=True)
        images = [self._fill(*row) for row in rows]
        return DetectorOutput(*(torch.stack(values) for values in zip(*images, strict=True)))

    def _fill(self, logits: Tensor, boxes: Tensor, states: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Make boxes relative; where an image has fewer than Q proposals, the rest are sure to be nothing."""
        height, width = size
        boxes = clip_boxes_to_image(boxes, size) / boxes.new_tensor([width, height, width, height])
        missing = self.num_queries - len(logits)
        nothing = torch.where(torch.arange(logits.shape[1]) < logits.shape[1] - 1, -50.0, 50.0).to(logits)
        return (
            torch.cat([logits, nothing.expand(missing, -1)]),
            F.pad(box_convert(boxes, "xyxy", "cxcywh"), (0, 0, 0, missing)),
            F.pad(states, (0, 0, 0, missing)),
        )

    def loss(self, out: DetectorOutput, targets: Sequence[dict[str, Tensor]], matches: object = None) -> Tensor:
        """Compute the loss of the box head, over all proposals instead of a random sample of them.

        Girshick, Fast R-CNN, ICCV 2015, section 2.3: a proposal whose box overlaps a target by half or more belongs to
        it, all others are background.
        """
        total = out.logits.new_zeros(())
        for logits, boxes, target in zip(out.logits, out.boxes, targets, strict=True):
            classes = torch.full((len(logits),), logits.shape[1] - 1, device=logits.device)
            if len(target["labels"]):
                corners = box_convert(boxes.detach(), "cxcywh", "xyxy")
                overlap, mine = box_iou(corners, box_convert(target["boxes"], "cxcywh", "xyxy")).max(1)
                positive = overlap >= 0.5
                classes[positive] = target["labels"][mine[positive]]
                near = F.smooth_l1_loss(boxes[positive], target["boxes"][mine[positive]], reduction="sum")
                total = total + near / len(logits)
            total = total + F.cross_entropy(logits.float(), classes)
        return total / len(targets)

    @torch.no_grad()
    def detections(self, out: DetectorOutput, sizes: Tensor) -> list[RawDetections]:
        """Read an output as detections, without what non-maximum suppression takes away."""
        heads = self.model.roi_heads
        found = []
        for image in super().detections(out, sizes):
            corners = box_convert(image.boxes, "xywh", "xyxy")
            kept = batched_nms(corners, image.scores, image.labels, heads.nms_thresh)
            kept = kept[image.scores[kept] > heads.score_thresh][: heads.detections_per_img]
            found.append(RawDetections(image.scores[kept], image.labels[kept], image.boxes[kept]))
        return found


def build() -> FrozenDetector:
    """The detector with torchvision's COCO weights, which are fetched once."""
    weights = FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    return FasterRcnnDetector(fasterrcnn_resnet50_fpn(weights=weights), weights.meta["categories"][1:])
