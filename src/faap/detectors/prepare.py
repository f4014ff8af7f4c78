"""Make a frozen model faster without changing what it computes."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


@torch.no_grad()
def prepare(model: PreTrainedModel) -> PreTrainedModel:
    """Fold batch norm into the convolutions, rectify in place, lay weights out channels last, use fused attention.

    The model must be for inference only: batch statistics are taken as constants. Outputs and input gradients stay
    the same up to float32 rounding.

    Args:
        model: a detector of `transformers`; it is changed in place.

    Returns:
        The same model.
    """
    for module in model.modules():
        convolution, norm = getattr(module, "convolution", None), getattr(module, "normalization", None)
        # The DETR families bring frozen batch norms of their own, alike but of no common class.
        if isinstance(convolution, nn.Conv2d) and "BatchNorm" in type(norm).__name__:
            _fold(convolution, norm)
            module.normalization = nn.Identity()
            activation = getattr(module, "activation", None)
            if isinstance(activation, nn.ReLU):
                # Nothing else reads the convolution's output.
                activation.inplace = True
    library_model: Any = model
    library_model.to(memory_format=torch.channels_last)
    # The empty key leaves the backbone alone, which has no attention.
    library_model.set_attn_implementation({"": "sdpa"})
    return model


def _fold(convolution: nn.Conv2d, norm: Any) -> None:
    scale = norm.weight.double() / (norm.running_var.double() + getattr(norm, "eps", 1e-5)).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    if convolution.bias is not None:
        shift = shift + convolution.bias.double() * scale
    convolution.weight.copy_(convolution.weight.double() * scale[:, None, None, None])
    convolution.bias = nn.Parameter(shift.to(convolution.weight.dtype), requires_grad=False)
