"""Make a frozen model faster without changing what it computes."""

import copy
from collections import Counter
from itertools import pairwise
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from transformers import PreTrainedModel


def prepare(model: PreTrainedModel) -> PreTrainedModel:
    """Fold batch norm into the convolutions, rectify in place, lay weights out channels last, use fused attention.

    The model must be for inference only: batch statistics are taken as constants. Outputs and input gradients stay
    the same up to float32 rounding.

    Args:
        model: a detector of `transformers`; it is changed in place.

    Returns:
        The same model.
    """
    fold_norms(model)
    library_model: Any = model
    library_model.to(memory_format=torch.channels_last)
    if not library_model._supports_sdpa:
        # DAB-DETR, whose library code knows no other attention than the plain one.
        for module in library_model.modules():
            if type(module).__name__ in ("DetrAttention", "DabDetrAttention"):
                module.forward = MethodType(_attend, module)
    else:
        # The empty key leaves the backbone alone, whose default is fused where it has attention.
        library_model.set_attn_implementation({"": "sdpa"})
    return model


def fold_norms(model: nn.Module) -> None:
    """Fold every batch norm that surely has a convolution's output for its input, and nobody else reads that output.

    A norm is folded if its module registers it right after a convolution and a copy of that module, run in float64 on
    a made-up feature map, gives the same outputs and the same input gradient with the norm folded.

    Args:
        model: any module; it is changed in place. ReLUs beside a folded norm overwrite their inputs from then on.
    """
    owners = Counter(id(child) for module in model.modules() for child in module.children())
    for parent in list(model.modules()):
        own = [(name, child) for name, child in parent.named_children() if owners[id(child)] == 1]
        pairs = [
            (name, following)
            for (name, convolution), (following, norm) in pairwise(own)
            # The families bring frozen batch norms of their own, alike but of no common class.
            if isinstance(convolution, nn.Conv2d) and "BatchNorm" in type(norm).__name__
        ]
        relus = [name for name, child in own if isinstance(child, nn.ReLU)]
        if pairs and _computes_the_same(parent, pairs, relus):
            _simplify(parent, pairs, relus)


@torch.no_grad()
def _simplify(parent: nn.Module, pairs: list[tuple[str, str]], relus: list[str]) -> None:
    """Fold norms into convolutions, and let ReLUs overwrite their inputs."""
    for name, following in pairs:
        convolution: Any = parent.get_submodule(name)
        norm: Any = parent.get_submodule(following)
        statistics = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        mean, variance, scale, shift = (value.double() for value in statistics)
        bias = None if convolution.bias is None else convolution.bias.double()
        eps = getattr(norm, "eps", 1e-5)
        folded = fuse_conv_bn_weights(convolution.weight.double(), bias, mean, variance, eps, scale, shift)
        # New tensors: another convolution may share the old ones.
        convolution.weight, convolution.bias = (
            nn.Parameter(value.to(convolution.weight), requires_grad=False) for value in folded
        )
        setattr(parent, following, nn.Identity())
    for name in relus:
        relu: Any = parent.get_submodule(name)
        relu.inplace = True


def _computes_the_same(parent: nn.Module, pairs: list[tuple[str, str]], relus: list[str]) -> bool:
    """Tell whether `_simplify` leaves the outputs and the input gradient of a module as they are."""
    plain, simple = (copy.deepcopy(parent).eval().double().requires_grad_(False) for _ in range(2))
    channels = next(module.in_channels for module in parent.modules() if isinstance(module, nn.Conv2d))
    # Two images: for one alone torch 2.13 can get the gradient of an unfolded norm wrong on the CPU.
    pixels = torch.randn(2, channels, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # What the module does not call is no part of the comparison.
    unused = {name for pair in pairs for name in pair} | set(relus)
    for name in list(unused):
        plain.get_submodule(name).register_forward_hook(lambda *_, name=name: unused.discard(name))
    try:
        _simplify(simple, pairs, relus)
        torch.testing.assert_close(
            _outputs_and_gradient(simple, pixels), _outputs_and_gradient(plain, pixels), rtol=1e-9, atol=1e-9
        )
    # Whatever keeps the copy from running on a feature map keeps the module as it is.
    except Exception:
        return False
    return not unused


@torch.enable_grad()
def _outputs_and_gradient(module: nn.Module, pixels: Tensor) -> list[Tensor]:
    """Outputs for a feature map, and the gradient at it of half their sum of squares."""
    pixels = pixels.clone().requires_grad_()
    out = module(pixels)
    outputs = [out] if isinstance(out, Tensor) else list(out)
    values = [output.detach().clone() for output in outputs]
    return [*values, *torch.autograd.grad(outputs, pixels, values)]


def _attend(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    object_queries: Tensor | None = None,
    key_states: Any = None,
    value_states: Any = None,
    **rest: object,
) -> tuple[Tensor, None]:
    """Compute what DAB-DETR's attention does, in the encoder and in the decoder, with the fused kernel."""
    query, key, value = hidden_states, key_states, value_states
    if object_queries is None:
        heads, project = self.attention_heads, self.output_proj
    else:  # the encoder's, which holds the projections too
        positioned = hidden_states + object_queries
        query, key, value = self.q_proj(positioned), self.k_proj(positioned), self.v_proj(hidden_states)
        heads, project = self.num_heads, self.out_proj
    query, key, value = (states.unflatten(-1, (heads, -1)).transpose(1, 2) for states in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, attention_mask)
    return project(mixed.transpose(1, 2).flatten(2)), None
