"""The perturbation generator, the one thing that is trained and deployed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import save
from torch import Tensor, nn

from faap.conform import Between, conform
from faap.data.images import is_coloured, odd
from faap.perturbation.budget import add_within_budget
from faap.weights import tensors_sha256

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
# Black and white lie 4.4 apart in normalised units: beyond that ε bounds nothing.
MAX_EPSILON = 4.5
MAX_WIDTH = 2048


def needed(pixel_mask: Tensor | None) -> Tensor | None:
    """Return a mask as bool, or None for one that hides nothing, where finding out does not keep a device waiting."""
    looks = pixel_mask is not None and pixel_mask.device.type == "cpu" and not torch.compiler.is_compiling()
    if pixel_mask is None or (looks and bool(pixel_mask.all())):
        return None
    return pixel_mask.bool()


# in the config: of the weights, see `weights.tensors_sha256`
DIGEST = "weights_sha256"


# of one that is sent by itself; `faap.hub` writes one of a run
_CARD = "---\n{{ card_data }}\n---\n\nA perturbation generator. What it does, `faap push RUN ORG/NAME` says.\n"


class Generator(nn.Module, PyTorchModelHubMixin, library_name="faap", tags=["faap"], model_card_template=_CARD):
    """Sees an image and says how to change it, by no more than ε; a subclass is one architecture.

    Args:
        epsilon: the bound of the perturbation in ImageNet-normalised units; may be set anew at any time and is saved.
        widths: channels of the three resolutions; None: the architecture's own.

    Raises:
        FaapError: if epsilon is negative, not finite or beyond the range of pixels, or widths are not such channels.
    """

    arch: ClassVar[str]
    WIDTHS: ClassVar[tuple[int, int, int]]
    DIVISOR: ClassVar[int] = 1  # of every width

    def __init__(self, epsilon: float = 0.10, widths: Sequence[int] | None = None) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.widths = self.WIDTHS if widths is None else widths
        conform(self.widths, [Between(self.DIVISOR, MAX_WIDTH, self.DIVISOR)] * 3, "widths")

    @property
    def epsilon(self) -> float:
        """The bound of the perturbation in ImageNet-normalised units."""
        return self._epsilon

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        conform(value, Between(0, MAX_EPSILON), "epsilon")
        self._epsilon = float(value)

    def config(self) -> dict[str, Any]:
        """Return the arguments of `build_generator` that build this generator again, ready for JSON."""
        return {"arch": self.arch, "epsilon": self.epsilon, "widths": list(self.widths)}

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """Compute the unbounded perturbation.

        Args:
            pixel_values: (B, 3, H, W) ImageNet-normalised, any H, W ≥ 1.
            pixel_mask: (B, H, W) bool, True where the image is; None: everywhere.

        Returns:
            (B, 3, H, W), any real values, before tanh and ε.
        """
        raise NotImplementedError

    def perturb(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """Return the images of `forward` with their perturbation.

        No value moves further than ε, nor out of what a pixel in [0, 1] can be; padding is left as it was.

        Args:
            pixel_values: (B, 3, H, W) ImageNet-normalised, of the generator's dtype, any H, W ≥ 1.
            pixel_mask: (B, H, W), True where the image is; None: everywhere.

        Raises:
            FaapError: if the images or the mask are of another shape, or the images are not of floats.

        Source: docs/recipes.md, "Notation".
        """
        if not (is_coloured(pixel_values) and pixel_values.ndim == 4 and all(pixel_values.shape[2:])):
            advice = "a tensor (B, 3, H, W) of floats, ImageNet-normalised; of pictures as they are see faap.apply"
            raise odd(pixel_values, advice)
        size = (len(pixel_values), *pixel_values.shape[2:])
        if pixel_mask is not None and not (isinstance(pixel_mask, Tensor) and pixel_mask.shape == size):
            raise odd(pixel_mask, f"a tensor {size}, True where the image is", "mask")
        mask = needed(pixel_mask)
        raw = self(pixel_values, mask).expand_as(pixel_values)  # one for all images is one for each
        return add_within_budget(pixel_values, raw, self.epsilon, mask)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "Generator":
        """Load from a directory or the hub; beside `epsilon` it takes the hub's options, such as `revision`."""
        from faap.perturbation.storage import load_folder

        return load_folder(pretrained_model_name_or_path, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        state = {name: value.contiguous() for name, value in self.state_dict().items()}
        # of a disk that is full, safetensors says less than the system
        (save_directory / WEIGHTS_FILE).write_bytes(save(state, metadata={"format": "pt"}))
        # the mixin's own config holds the arguments at construction, and epsilon may have moved since
        config = self.config() | {DIGEST: tensors_sha256(state)}
        (save_directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
