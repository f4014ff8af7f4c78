"""The projection head in front of the contrastive terms; it is trained with the generator and then thrown away."""

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from faap.errors import FaapError, nearest
from faap.objectives.numerics import widen
from faap.settings import setting

# and which layers each does without
VARIANTS = {"plain": ("norm", "dropout"), "layernorm": ("dropout",), "stabilized": ()}


class ProjectionHead(nn.Module):
    """Projects an image's features onto the unit sphere.

    Args:
        feature_dim: D, the width of the detector's decoder states.
        projection_dim: d, the width of the projection.
        variant: "plain" is Linear(D, D), ReLU, Linear(D, d); "layernorm" puts a LayerNorm(D) first; "stabilized" has a
            dropout before the last layer as well.
        dropout: its probability in [0, 1), for "stabilized" only.

    Raises:
        FaapError: if the variant is unknown.

    Source: docs/recipes.md, "Heads".
    """

    def __init__(
        self, feature_dim: int, projection_dim: int = 128, variant: str = "stabilized", dropout: float = 0.1
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise FaapError(f"head is {variant!r}; it must be {', '.join(VARIANTS)}.{nearest(variant, VARIANTS)}")
        layers = {"norm": nn.LayerNorm(feature_dim), "hidden": nn.Linear(feature_dim, feature_dim), "relu": nn.ReLU()}
        layers |= {"dropout": nn.Dropout(dropout), "out": nn.Linear(feature_dim, projection_dim)}
        kept = OrderedDict((name, layer) for name, layer in layers.items() if name not in VARIANTS[variant])
        self.layers = nn.Sequential(kept)

    def forward(self, features: Tensor) -> Tensor:
        """Project.

        Args:
            features: (B, D) decoder states averaged over queries.

        Returns:
            (B, d) unit vectors, in float32 or better.
        """
        return F.normalize(widen(self.layers(features)), dim=1)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of the projection head."""

    head: str = setting("stabilized", "projection head; none: only normalised", choices=("none", *VARIANTS))
    proj_dim: int = setting(128, "width of the projection", low=1, high=65_536)
    proj_dropout: float = setting(0.1, "dropout probability in the stabilized head", low=0, below=1)
