"""Muon: weight matrices move along orthogonal matrices, everything else by AdamW."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
# of the odd polynomial that is iterated: steep at zero, so that small singular values grow quickly
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
# with it a step of a matrix is about as large as one of AdamW's, at the same learning rate
_LIKE_ADAM = 0.2


class Muon(torch.optim.AdamW):
    """Replaces the momentum of every weight matrix by the nearest matrix with orthogonal rows or columns, nearly.

    All directions of a matrix's momentum move it equally far, which reaches in half of the images where AdamW gets. A
    matrix is a parameter of two or more dimensions, (out, all others); its learning rate and weight decay mean what
    they do for AdamW.

    Args:
        parameters: what is trained.
        apart: those of them that are left to AdamW although they have two dimensions or more: what comes out last.
        options: AdamW's.

    Attributes:
        matrices: lists of parameters, those of one shape together.

    Source: Jordan et al., Muon: an optimizer for hidden layers (2024); the step's size: Liu et al., arXiv:2502.16982.
    """

    def __init__(self, parameters: Iterable[Tensor], *, apart: Sequence[Tensor] = (), **options: Any) -> None:
        alike: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        others, apart_ids = list[Tensor](), {id(each) for each in apart}
        for each in parameters:
            matrix = each.ndim > 1 and id(each) not in apart_ids
            (alike[len(each), each[0].numel()] if matrix else others).append(each)
        self.matrices = list(alike.values())
        matrices = [each for matrices in self.matrices for each in matrices]
        groups: list[dict[str, Any]] = [{"params": others}, {"params": matrices, "matrices": True}]
        super().__init__(groups, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make a step with the gradients that are there; `closure` must be None."""
        assert closure is None
        both = self.param_groups
        rate, decay = both[1]["lr"], both[1]["weight_decay"]
        reached = ([each for each in alike if each.grad is not None] for alike in self.matrices)
        for alike in filter(None, reached):
            moved = torch.stack([self._momentum(each).flatten(1) for each in alike])
            scale = _LIKE_ADAM * max(moved.shape[1:]) ** 0.5
            for each, direction in zip(alike, orthogonal(moved), strict=True):
                each.mul_(1 - rate * decay).sub_(direction.view_as(each) * (rate * scale))
        self.param_groups = both[:1]
        try:
            super().step()
        finally:
            self.param_groups = both

    def _momentum(self, weight: Tensor) -> Tensor:
        """Take up a weight's gradient; return Nesterov's look ahead."""
        assert weight.grad is not None
        state = self.state[weight]
        if not state:  # AdamW asks for the step when a state is loaded
            state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(weight)}
        kept: Tensor = state["exp_avg"]
        kept.lerp_(weight.grad, 1 - MOMENTUM)
        return weight.grad.lerp(kept, MOMENTUM)


def orthogonal(matrices: Tensor) -> Tensor:
    """Bring singular values of matrices (N, R, C) to between .68 and 1.2; those below .002 of the norm stay smaller."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, b * square + c * square @ square, x, beta=a)
    return x.mT if tall else x
