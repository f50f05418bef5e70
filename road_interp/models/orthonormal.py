"""Whether columns are an orthonormal basis of what they span."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def is_orthonormal(columns: Float[Tensor, "width count"]) -> bool:
    """Whether columns are orthonormal up to the rounding of their dtype, and finite."""
    columns = columns.detach()
    products = columns.double().T @ columns.double()
    tolerance = max(1e-4, 4 * torch.finfo(columns.dtype).eps)
    return torch.allclose(
        products, torch.eye(len(products), dtype=products.dtype, device=products.device), rtol=0, atol=tolerance
    )
