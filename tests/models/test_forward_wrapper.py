"""Detours: what a thread puts on a module's way stays with the thread, and the module's own forward comes back."""

from __future__ import annotations

import copy
import itertools
import threading

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn
from torch.utils.checkpoint import checkpoint

from road_interp.models.forward_wrapper import original_forward, wrap_forward

STATE = torch.ones(1, 2)


def double(output, tracing):
    return 2 * output


def more(output, tracing):
    return output + 1


def module():
    torch.manual_seed(0)
    return nn.Linear(2, 2)


def test_changes_are_made_in_their_order_and_taken_back():
    linear = module()
    plain = linear(STATE)
    restore = [wrap_forward(linear, change) for change in (double, more)]
    assert torch.equal(linear(STATE), 2 * plain + 1)
    restore[0]()
    assert torch.equal(linear(STATE), plain + 1)
    restore[1]()
    assert torch.equal(linear(STATE), plain)
    assert "forward" not in linear.__dict__


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_they_may_go_in_any_order(order):
    linear = module()
    plain = linear(STATE)
    restore = [wrap_forward(linear, change) for change in (double, double, more)]
    for number in order:
        assert not torch.equal(linear(STATE), plain)
        restore[number]()
    assert torch.equal(linear(STATE), plain)
    assert "forward" not in linear.__dict__


def test_every_thread_meets_its_own():
    linear = module()
    plain, seen, both_on = linear(STATE), {}, threading.Barrier(2)

    def run(change):
        restore = wrap_forward(linear, change)
        both_on.wait()
        seen[change] = linear(STATE)
        both_on.wait()
        restore()

    threads = [threading.Thread(target=run, args=(change,)) for change in (double, more)]
    for thread in threads:
        thread.start()
    assert torch.equal(linear(STATE), plain)
    for thread in threads:
        thread.join()
    assert torch.equal(seen[double], 2 * plain)
    assert torch.equal(seen[more], plain + 1)
    assert "forward" not in linear.__dict__


def test_accelerates_own_replacement_stays():
    linear = module()
    plain = linear(STATE)

    class Negate(ModelHook):
        def post_forward(self, module, output):
            return -output

    add_hook_to_module(linear, Negate())
    theirs = linear.forward
    restore = wrap_forward(linear, double)
    assert torch.equal(linear(STATE), -2 * plain)
    restore()
    assert linear.forward is theirs
    remove_hook_from_module(linear)
    assert torch.equal(linear(STATE), plain)


def test_a_replacement_put_on_top_is_left_alone():
    linear = module()
    plain = linear(STATE)
    restore = wrap_forward(linear, double)
    below = linear.forward
    linear.forward = lambda state: -below(state)
    assert torch.equal(linear(STATE), -2 * plain)
    restore()
    assert torch.equal(linear(STATE), -plain)


def test_a_copy_made_meanwhile_is_the_plain_module():
    linear = module()
    plain = linear(STATE)
    restore = wrap_forward(linear, double)
    other = copy.deepcopy(linear)
    restore()
    assert torch.equal(other(STATE), plain)
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.zero_()
    assert torch.equal(other(STATE), plain)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_repeats_the_changes_in_another_thread(reentrant):
    linear, state = module(), STATE.clone().requires_grad_()
    scale = torch.ones((), requires_grad=True)
    restore = wrap_forward(linear, lambda output, tracing: output * (2 + scale))
    loss = checkpoint(lambda x: linear(linear(x)), state, use_reentrant=reentrant).sum()
    thread = threading.Thread(target=loss.backward)  # as on a GPU
    thread.start()
    thread.join()
    again = STATE.clone().requires_grad_()
    linear(linear(again)).sum().backward()
    torch.testing.assert_close(state.grad, again.grad)
    restore()


def test_own_forward_is_somebody_elses():
    linear = module()
    assert original_forward(linear) is None
    restore = wrap_forward(linear, double)
    assert original_forward(linear) is None
    restore()
    linear.forward = theirs = lambda state: state
    restore = wrap_forward(linear, double)
    assert original_forward(linear) is theirs
    restore()
    assert linear.forward is theirs
