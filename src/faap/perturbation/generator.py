"""The perturbation generator, the one thing that is trained and deployed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import save_file
from torch import Tensor, nn

from faap.errors import FaapError, nearest
from faap.perturbation.budget import spend
from faap.perturbation.light import Light
from faap.perturbation.unet import UNet

ARCHITECTURES: dict[str, type[Light] | type[UNet]] = {"light": Light, "unet": UNet}
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


class Generator(nn.Module, PyTorchModelHubMixin, library_name="faap", tags=["faap"]):
    """Sees an image and says how to change it, by no more than ε.

    Args:
        arch: "light", the default, works at reduced resolution; "unet" is the original network.
        epsilon: the bound of the perturbation in ImageNet-normalised units; may be set anew at any time and is saved.
        widths: channels of the three resolutions; None: the architecture's own.

    Raises:
        FaapError: if the architecture is unknown or epsilon negative.
    """

    def __init__(self, arch: str = "light", epsilon: float = 0.10, widths: Sequence[int] | None = None) -> None:
        super().__init__()
        if arch not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise FaapError(f"arch is {arch!r}; it must be one of {known}.{nearest(arch, ARCHITECTURES)}")
        if not epsilon >= 0:
            raise FaapError(f"epsilon is {epsilon!r}; it must be 0 or more, in normalised units.")
        self.arch, self.epsilon = arch, float(epsilon)
        self.widths = list(ARCHITECTURES[arch].WIDTHS if widths is None else widths)
        self.network = ARCHITECTURES[arch](self.widths)

    def config(self) -> dict[str, Any]:
        """Return the arguments that build this generator again, ready for JSON."""
        return {"arch": self.arch, "epsilon": self.epsilon, "widths": self.widths}

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """Compute the unbounded perturbation.

        Args:
            pixel_values: (B, 3, H, W) ImageNet-normalised, any H, W ≥ 1.
            pixel_mask: (B, H, W) bool, True where the image is; None: everywhere.

        Returns:
            (B, 3, H, W), any real values, before tanh and ε.
        """
        raw: Tensor = self.network(pixel_values, pixel_mask)
        return raw

    def perturb(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """Return the images with their perturbation.

        Args:
            pixel_values: (B, 3, H, W) ImageNet-normalised, any H, W ≥ 1.
            pixel_mask: (B, H, W) bool, True where the image is; None: everywhere.

        Returns:
            (B, 3, H, W) normalised, no further than ε from the input, within what a pixel in [0, 1] can be; padding is
            left as it was.

        Source: spec/recipes.md, "Notation".
        """
        mask = None if pixel_mask is None or bool(pixel_mask.all()) else pixel_mask.bool()
        return spend(pixel_values, self(pixel_values, mask), self.epsilon, mask)

    # The names in checkpoints are the network's own, as in those of the original U-Net.

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the network's state dict."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the network's state dict."""
        return self.network.load_state_dict(state_dict, strict, assign)

    def _save_pretrained(self, save_directory: Path) -> None:
        # the mixin's own config holds the arguments at construction, and epsilon may have moved since
        (save_directory / CONFIG_FILE).write_text(json.dumps(self.config(), indent=2) + "\n", encoding="utf-8")
        state = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_file(state, save_directory / WEIGHTS_FILE, metadata={"format": "pt"})
