"""PEFT's OFT with 2 x 2 matrices rotates the input of a linear layer by the maps of a road_1 of magnitude 1."""

from __future__ import annotations

import peft
import torch
from torch import nn

from road_interp.rotation import plane_maps


def test_oft_with_blocks_of_two_is_road_1_of_magnitude_1_on_the_input():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 6))
    config = peft.OFTConfig(oft_block_size=2, target_modules=["0"], use_cayley_neumann=False)
    oft = peft.get_peft_model(plain, config)
    layer = oft.base_model.model[0]
    halves = layer.oft_R["default"].weight
    nn.init.normal_(halves)
    hidden = torch.randn(3, 5, 8)

    theta = -2 * halves.detach().flatten().atan()  # the Cayley transform of a 2 x 2 generator rotates by twice its arc tangent
    maps = plane_maps.maps_from_parameters(theta, torch.ones(4), "road_1", 2)
    expected = layer.base_layer(plane_maps.apply(maps, hidden, 2))
    torch.testing.assert_close(oft(hidden), expected, atol=1e-6, rtol=1e-6)
    assert halves.numel() == plane_maps.num_parameters(8, "road_1")
    assert not torch.allclose(expected, layer.base_layer(hidden), atol=0.1)
