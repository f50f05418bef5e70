"""Training steps of several adapters, together and one after the other."""

import pytest
import torch

from helpers.models import tiny_model
from road_interp.errors import InputError
from road_interp.measure.joint_training import joint_training


def test_every_round_times_both_ways():
    report = joint_training(tiny_model("Llama", "causal-lm"), counts=(1, 3), batch=2, length=4, rounds=2)
    assert [step.adapters for step in report.steps] == [1, 3]
    assert all(len(times) == 2 and min(times) > 0 for step in report.steps for times in (step.together, step.apart))


def test_the_callers_random_numbers_and_model_stay():
    model = tiny_model("Llama", "causal-lm").train().requires_grad_(True)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    joint_training(model, counts=(1,), batch=1, length=2, rounds=1)
    assert torch.equal(torch.rand(3), expected)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_is_no_list_of_numbers_is_refused():
    with pytest.raises(InputError, match="numbers of adapters"):
        joint_training(tiny_model("Llama", "causal-lm"), counts=4)


@pytest.mark.parametrize("name", ["batch", "length", "rounds"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(InputError, match=f"measure.joint_training: {name} must be a whole number of at least 1, not 0"):
        joint_training(tiny_model("Llama", "causal-lm"), counts=(1,), **{name: 0})


def test_one_token_has_no_target():
    with pytest.raises(InputError, match="length must be at least 2"):
        joint_training(tiny_model("Llama", "causal-lm"), counts=(1,), length=1)
