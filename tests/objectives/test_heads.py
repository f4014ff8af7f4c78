import numpy as np
import pytest
import torch

from faap.objectives import ProjectionHead
from faap.objectives.heads import Settings


def by_hand(head: ProjectionHead, features: torch.Tensor) -> np.ndarray:
    state = {name.split(".", 1)[1]: value.numpy() for name, value in head.state_dict().items()}
    x = features.numpy()
    if "norm.weight" in state:
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        x = x * state["norm.weight"] + state["norm.bias"]
    x = np.maximum(x @ state["hidden.weight"].T + state["hidden.bias"], 0) @ state["out.weight"].T + state["out.bias"]
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize(("variant", "has_norm"), [("plain", False), ("layernorm", True), ("stabilized", True)])
def test_each_variant_is_what_the_recipes_say(variant: str, has_norm: bool) -> None:
    head = ProjectionHead(12, Settings(proj_dim=7, head=variant)).eval()
    torch.nn.init.normal_(head.layers[0].bias)  # type: ignore[arg-type]
    features = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    projected = head(features)
    assert ("layers.norm.weight" in head.state_dict()) == has_norm
    assert head.state_dict()["layers.hidden.weight"].shape == (12, 12)
    assert projected.shape == (5, 7)
    assert projected.detach().numpy() == pytest.approx(by_hand(head, features), abs=1e-5)


def test_only_the_stabilized_head_drops_out_and_only_in_training() -> None:
    features = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    for variant in ("plain", "layernorm", "stabilized"):
        head = ProjectionHead(32, Settings(head=variant, proj_dropout=0.5))
        different = not torch.equal(head(features), head(features))
        assert different == (variant == "stabilized")
        head.eval()
        assert torch.equal(head(features), head(features))


def test_the_probability_of_dropout_is_a_setting() -> None:
    features = torch.randn(8, 32)
    head = ProjectionHead(32, Settings(proj_dropout=0.0))
    assert torch.equal(head(features), head(features))


def test_vectors_have_unit_length_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        projected = ProjectionHead(16, Settings())(torch.randn(6, 16))
    assert projected.dtype == torch.float32
    assert projected.norm(dim=1).tolist() == pytest.approx([1.0] * 6, abs=1e-5)
