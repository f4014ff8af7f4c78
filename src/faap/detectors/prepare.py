"""Make a frozen model faster without changing what it computes."""

import copy
from collections import Counter
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from transformers import PreTrainedModel

_STATISTICS = ("running_mean", "running_var", "weight", "bias")


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
    if library_model._supports_sdpa:
        # The empty key leaves the backbone alone, whose default is fused where it has attention.
        library_model.set_attn_implementation({"": "sdpa"})
    return model


def fold_norms(model: nn.Module) -> None:
    """Fold every batch norm that surely has a convolution's output for its input, and nobody else reads that output.

    That is seen by tracing the forward of the module that registers both, where each is called once and nowhere else.

    Args:
        model: any module; it is changed in place. ReLUs after a folded norm overwrite their inputs from then on.
    """
    owners = Counter(child for module in model.modules() for child in module.children())
    for parent in list(model.modules()):
        if not any(map(_is_batch_norm, parent.children())):
            continue
        try:
            # of a copy: what a forward keeps would be a tracer's, and not a tensor
            nodes = [n for n in _Tracer().trace(copy.deepcopy(parent)).nodes if n.op in ("call_module", "get_attr")]
        # whatever keeps the module from being traced keeps it as it is
        except Exception:
            continue
        uses = Counter(str(node.target).partition(".")[0] for node in nodes)
        own = {name: child for name, child in parent.named_children() if uses[name] == owners[child] == 1}
        calls: dict[Any, Any] = {node: own[node.target] for node in nodes if node.target in own}
        for node, norm in calls.items():
            source: Any = next(iter(node.all_input_nodes), None)
            # a subclass may do more than its name says
            if _is_batch_norm(norm) and type(calls.get(source)) is nn.Conv2d and len(source.users) == 1:
                _fold(calls[source], norm)
                setattr(parent, node.target, nn.Identity())
                for reader in node.users:
                    if isinstance(calls.get(reader), nn.ReLU) and len(node.users) == 1:
                        calls[reader].inplace = True


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _is_batch_norm(module: Any) -> bool:
    """Whether it is one with fixed statistics; the families bring frozen ones, alike but of no common class."""
    known = type(module).__name__.endswith("BatchNorm2d")
    return known and all(getattr(module, name, None) is not None for name in _STATISTICS)


def _fold(convolution: nn.Conv2d, norm: Any) -> None:
    mean, variance, scale, shift = (getattr(norm, name).double() for name in _STATISTICS)
    bias = None if convolution.bias is None else convolution.bias.double()
    eps = getattr(norm, "eps", 1e-5)
    folded = fuse_conv_bn_weights(convolution.weight.double(), bias, mean, variance, eps, scale, shift)
    # New tensors: another convolution may share the old ones.
    convolution.weight, convolution.bias = (
        nn.Parameter(value.detach().to(convolution.weight), requires_grad=False) for value in folded
    )
