"""What every term needs to stay finite: enough precision, and a zero that can be differentiated."""

from contextlib import nullcontext

import torch
from torch import Tensor


def widen(values: Tensor) -> Tensor:
    """Return half-precision values as float32 and all others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def similarities(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the inner products of (n, d) and (m, d) as (n, m), in float32 or better even under autocast."""
    kind = rows.device.type
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
        return widen(rows) @ widen(columns).T


def connected_zero(*inputs: Tensor) -> Tensor:
    """Return a scalar 0 from which `backward` reaches every input with a gradient of 0."""
    # an empty sum stays 0 when an input holds inf or nan, a product with 0 does not
    return torch.stack([widen(values).flatten()[:0].sum() for values in inputs]).sum()
