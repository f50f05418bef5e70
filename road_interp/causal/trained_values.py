"""Numbers of trained values of an interchange: of all, and of those that can change its result."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from road_interp.causal.interchange_runs import Interchange
from road_interp.models.seeding import generator_of

ROUNDING = 1e-9  # gradients up to it are rounding: those of random values are near 1


def count_trained_values(interchange: Interchange) -> int:
    """Number of trained values of an interchange; 0 for a function."""
    parameters = interchange.parameters() if isinstance(interchange, nn.Module) else ()
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad)


def effective_parameters(interchange: nn.Module, width: int) -> int | None:
    """Number of trained values that can change the result: those with a gradient at random values, on random states, in fp64.

    None for an interchange that cannot compute in fp64.

    A coordinate of a full-depth stack of plane rotations reads few angles of the last levels: one of width 576 reads 799 of
    2,880. A swap of all coordinates gives the source whatever the rotation, so that none of its angles has an effect.
    """
    with torch.inference_mode(False), torch.enable_grad():
        try:
            draws = [_gradients_at_random_values(interchange, width, seed) for seed in range(3)]  # one may be near 0 by chance
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return None
    return sum(int((torch.stack(of_each).amax(0) > ROUNDING).sum()) for of_each in zip(*draws, strict=True))


def _gradients_at_random_values(interchange: nn.Module, width: int, seed: int) -> list[Tensor]:
    """Sizes of the gradients of the trained values."""
    device = next(interchange.parameters()).device
    generator = generator_of(seed)
    of_random_values = copy.deepcopy(interchange).double()
    for parameter in of_random_values.parameters():  # some classes keep theirs in fp32
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = parameter.data.double() + noise.to(device)
    trained = [parameter for parameter in of_random_values.parameters() if parameter.requires_grad]
    base, source = (torch.randn(8, width, generator=generator, dtype=torch.float64).to(device) for _ in range(2))
    result = of_random_values(base, source).square().sum()
    gradients = torch.autograd.grad(result, trained, allow_unused=True, materialize_grads=True)
    return [gradient.abs() for gradient in gradients]
