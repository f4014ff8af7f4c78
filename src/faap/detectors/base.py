"""What the rest of the house sees of a detector: outputs, loss, matching, detections, and that it never changes."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faap.data.fields import folded
from faap.data.images import MEAN, STD, Preprocessing, denormalise, normalise
from faap.data.targets import Target, Targets
from faap.detectors.set_loss import SIGMOID, SOFTMAX, Activation, Criterion, Match, Matches, match_layers, set_loss
from faap.errors import FaapError
from faap.weights import tensors_sha256


@dataclass
class DetectorOutput:
    """What a detector says about a batch of B images with Q queries.

    Attributes:
        logits: (B, Q, C') class logits; for softmax detectors the last column is no-object.
        boxes: (B, Q, 4) boxes, cxcywh relative to the image without its padding, in [0, 1].
        features: (B, Q, D) states of the last decoder layer, as the class head reads them.
        aux: (logits, boxes) of the earlier decoder layers, first to last; before them those of the encoder's proposals,
            if the detector's own loss has them.
    """

    logits: Tensor
    boxes: Tensor
    features: Tensor
    aux: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@dataclass
class RawDetections:
    """The detections in one image; see `FrozenDetector.detections`.

    Attributes:
        scores: (Q,) probabilities in [0, 1].
        labels: (Q,) class indices of the detector.
        boxes: (Q, 4) xywh in pixels of the original image, not clipped to it.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor


class FrozenDetector(nn.Module):
    """A detector whose weights, buffers and mode never change; gradients pass through it to the pixels.

    A subclass wraps one kind of model and implements `forward(pixel_values, pixel_mask=None) -> DetectorOutput`.

    Args:
        model: the wrapped network; it is put in evaluation mode and its parameters stop requiring gradients.
        name: what to call the detector in reports.
        labels: class index -> class name, no-object left out.
        num_queries: Q, the number of detections in an image.
        feature_dim: D, the width of the decoder's states.
        preprocessing: how an image becomes `pixel_values`.
        activation: "softmax" when the last logit is no-object, "sigmoid" for independent class scores.
        file_sha256: hex SHA-256 of the weights file, which is the checkpoint's identity outside this process.
        criterion: matching costs and loss; DETR's for softmax and Deformable DETR's for sigmoid by default.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        labels: dict[int, str],
        num_queries: int,
        feature_dim: int,
        preprocessing: Preprocessing,
        activation: Activation,
        file_sha256: str,
        criterion: Criterion | None = None,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.name, self.labels, self.file_sha256 = name, labels, file_sha256
        self.num_queries, self.feature_dim, self.preprocessing = num_queries, feature_dim, preprocessing
        self.activation = activation
        self.criterion = criterion or {"softmax": SOFTMAX, "sigmoid": SIGMOID}[activation]
        self.train(False)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> DetectorOutput:
        """Detect objects in a batch of normalised images.

        Args:
            pixel_values: (B, 3, H, W) float, normalised with `preprocessing`, zero in the padding.
            pixel_mask: (B, H, W) bool, True where the image is; None when nothing is padded.

        Returns:
            The outputs of all decoder layers.
        """
        raise NotImplementedError

    def adapt(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Turn ImageNet-normalised images into what `forward` takes: the detector's own units and padding.

        Args:
            pixel_values: (B, 3, H, W) float, ImageNet-normalised.
            pixel_mask: (B, H, W) bool, True where the image is; None when nothing is padded.

        Returns:
            Both for `forward`, with gradients to `pixel_values`; the same tensors when there is nothing to change.

        Raises:
            FaapError: the images are larger than the size that the detector pads to.
        """
        own = self.preprocessing
        if (own.mean, own.std) != (MEAN, STD):
            pixel_values = normalise(denormalise(pixel_values), own.mean, own.std)
            if pixel_mask is not None:
                pixel_values = torch.where(pixel_mask[:, None], pixel_values, 0)
        if own.pad_size is not None and own.pad_size != pixel_values.shape[2:]:
            height, width = own.pad_size
            rows, columns = height - pixel_values.shape[2], width - pixel_values.shape[3]
            if rows < 0 or columns < 0:
                large = f"but its resizing leaves some of {pixel_values.shape[3]}x{pixel_values.shape[2]}"
                advice = "raise pad_size, or lower size, in its preprocessor_config.json"
                raise FaapError(f"the detector {self.name} pads images to {width}x{height} pixels, {large}; {advice}")
            real = torch.ones_like(pixel_values[:, 0], dtype=torch.bool) if pixel_mask is None else pixel_mask
            pixel_values, pixel_mask = (F.pad(each, (0, columns, 0, rows)) for each in (pixel_values, real))
        return pixel_values, pixel_mask

    def train(self, mode: bool = True) -> "FrozenDetector":
        """Stay in evaluation mode, whatever a parent module asks for."""
        return super().train(False)

    def match_all_layers(self, out: DetectorOutput, targets: Sequence[Target]) -> Sequence[list[Match]]:
        """Match the queries of every decoder layer to the targets, each layer on its own.

        Args:
            out: the detector's output for B images.
            targets: B dicts with "labels" (n,) and "boxes" (n, 4) cxcywh in [0, 1].

        Returns:
            For each layer, first to last (the last entry belongs to `out.logits`), B pairs (query_index,
            target_index) of CPU LongTensors of length min(Q, n), sorted by target_index.
        """
        return match_layers(*_stack_layers(out), targets, self.criterion)

    def loss(
        self,
        out: DetectorOutput,
        targets: Sequence[Target],
        matches: Sequence[Sequence[Match]] | None = None,
        criterion: Criterion | None = None,
    ) -> Tensor:
        """Compute the detector's set loss over all layers of `aux` and the last one; see `set_loss`.

        Args:
            out: the detector's output for B images.
            targets: B dicts with "labels" (n,) and "boxes" (n, 4) cxcywh in [0, 1].
            matches: the result of `match_all_layers(out, targets)` if it is already known.
            criterion: other weights than the detector's own.

        Returns:
            A scalar.
        """
        matches = self.match_all_layers(out, targets) if matches is None else matches
        return set_loss(*_stack_layers(out), targets, matches, criterion or self.criterion)

    def matched_scores(
        self, out: DetectorOutput, targets: Sequence[Target], matches: Sequence[Sequence[Match]]
    ) -> list[Tensor]:
        """Read the probability of each target's label at the query that the last layer's matching gives it.

        Args:
            out: the detector's output for B images.
            targets: as in `match_all_layers`, whose result is `matches`.

        Returns:
            B differentiable tensors (min(Q, n),), in the order of the targets.
        """
        probabilities, packed = self.class_probabilities(out.logits), Targets.of(targets)
        query = Matches.of(matches, packed).queries[-1]  # (B, T)
        scores = probabilities[torch.arange(len(query), device=query.device)[:, None], query, packed.labels]
        few, each = probabilities.shape[1], zip(scores, query, packed.counts, strict=True)
        return [row[:count] if count <= few else row[own >= 0] for row, own, count in each]

    def class_probabilities(self, logits: Tensor) -> Tensor:
        """Turn class logits (..., C') into float32 probabilities (..., C) of the real classes."""
        logits = logits.float()
        return logits.softmax(-1)[..., :-1] if self.activation == "softmax" else logits.sigmoid()

    @torch.no_grad()
    def detections(self, out: DetectorOutput, sizes: Tensor) -> list[RawDetections]:
        """Read an output as Q detections an image, in pixels.

        With softmax every query is one detection, of its best real class. With sigmoid a query may be of several
        classes: the detections are the Q best of all queries' classes, as these detectors are evaluated.

        Args:
            out: the detector's output for B images.
            sizes: (B, 2) height and width of the original images in pixels.

        Returns:
            B detections on the output's device.
        """
        probabilities = self.class_probabilities(out.logits)
        height, width = sizes.to(out.boxes).unbind(-1)
        boxes = out.boxes.float()
        boxes = torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., 2:]], -1)
        boxes = boxes * torch.stack([width, height, width, height], -1)[:, None]
        if self.activation == "softmax":
            scores, labels = probabilities.max(-1)
        else:
            queries, classes = probabilities.shape[1:]
            scores, best = probabilities.flatten(1).topk(queries)
            labels = best % classes
            boxes = boxes.gather(1, (best // classes)[..., None].expand(-1, -1, 4))
        return [RawDetections(*image) for image in zip(scores, labels, boxes, strict=True)]

    def label_map(self, categories: dict[int, str]) -> dict[int, int]:
        """Map the data set's categories to the detector's classes by name, whatever the case and the blanks.

        Args:
            categories: data set category id -> name.

        Returns:
            Data set category id -> class index, without the categories that the detector does not know.

        Raises:
            FaapError: no name is common to both, or one belongs to several classes.
        """
        known: dict[str, list[int]] = defaultdict(list)
        for index, label in sorted(self.labels.items()):
            known[folded(label)].append(index)
        found = {category: known[folded(name)] for category, name in categories.items() if folded(name) in known}
        where = "in its config.json (id2label) or, for an original NAME.pth, in NAME.classes.txt beside it, one a line"
        if not found:
            theirs, mine = (", ".join(sorted(set(each.values()))) for each in (categories, self.labels))
            raise FaapError(
                f"none of the data set's categories ({theirs}) is a class of the detector {self.name} ({mine}); rename "
                f"the categories in the annotations, or the detector's classes {where}"
            )
        for category, indices in found.items():
            if len(indices) > 1:
                name, several = categories[category], ", ".join(f"{index} {self.labels[index]!r}" for index in indices)
                what = f"the category {name!r} can be several classes of the detector {self.name}: {several}"
                raise FaapError(f"{what}; rename those that it is not, {where}")
        return {category: index for category, (index,) in found.items()}

    def tensors_sha256(self) -> str:
        """Hash the live tensors (name, dtype, shape, bytes), to show that nothing changed while it was used.

        Preparing a model folds and rounds its weights, so this is not the hash of the checkpoint: that is
        `file_sha256`.

        Returns:
            64 hex digits.
        """
        return tensors_sha256(dict(chain(self.model.named_parameters(), self.model.named_buffers())))


def _stack_layers(out: DetectorOutput) -> tuple[Tensor, Tensor]:
    logits, boxes = zip(*out.aux, (out.logits, out.boxes), strict=True)
    return torch.stack(logits), torch.stack(boxes)


@contextmanager
def unchanged(detector: FrozenDetector) -> Iterator[str]:
    """Hold a detector's tensors against what they were, once the block has ended well; it gets their hash.

    Raises:
        FaapError: a weight or buffer is not what it was.
    """
    before = detector.tensors_sha256()
    yield before
    if detector.tensors_sha256() != before:
        said = f"the frozen detector {detector.name} has changed while it was used, so that nothing measured holds"
        raise FaapError(f"{said}: a fault of its own code, or of faap; please report it.")
