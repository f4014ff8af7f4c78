"""The projection head in front of the contrastive terms; it is trained with the generator and then thrown away."""

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from faap.objectives.numerics import widen
from faap.settings import setting

# and which layers each does without
VARIANTS = {"plain": ("norm", "dropout"), "layernorm": ("dropout",), "stabilized": ()}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of the projection head."""

    head: str = setting("stabilized", "projection head; none: only normalised", choices=("none", *VARIANTS))
    proj_dim: int = setting(128, "width of the projection", low=1, high=65_536)
    proj_dropout: float = setting(0.1, "dropout probability in the stabilized head", low=0, below=1)


class ProjectionHead(nn.Module):
    """Projects an image's features onto the unit sphere.

    Args:
        feature_dim: D, the width of the detector's decoder states.
        settings: `proj_dim`, d, the width of the projection, and `head`: "plain" is Linear(D, D), ReLU, Linear(D, d);
            "layernorm" puts a LayerNorm(D) first; "stabilized" has a dropout before the last layer as well.

    Source: docs/recipes.md, "Heads".
    """

    def __init__(self, feature_dim: int, settings: Settings) -> None:
        super().__init__()
        layers = {"norm": nn.LayerNorm(feature_dim), "hidden": nn.Linear(feature_dim, feature_dim), "relu": nn.ReLU()}
        layers |= {"dropout": nn.Dropout(settings.proj_dropout), "out": nn.Linear(feature_dim, settings.proj_dim)}
        kept = OrderedDict((name, layer) for name, layer in layers.items() if name not in VARIANTS[settings.head])
        self.layers = nn.Sequential(kept)

    def forward(self, features: Tensor) -> Tensor:
        """Project.

        Args:
            features: (B, D) decoder states averaged over queries.

        Returns:
            (B, d) unit vectors, in float32 or better.
        """
        return F.normalize(widen(self.layers(features)), dim=1)
