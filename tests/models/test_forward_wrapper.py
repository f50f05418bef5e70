"""Forward wrappers: transforms apply in the execution context that entered their scope; the original forward is restored."""

from __future__ import annotations

import asyncio
import copy
import itertools
import threading

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn
from torch.utils.checkpoint import checkpoint

from road_interp.models.forward_wrapper import CallScope, Wrappers, original_forward, wrap_forward

STATE = torch.ones(1, 2)


def double(output, tracing):
    return 2 * output


def add_one(output, tracing):
    return output + 1


def module():
    torch.manual_seed(0)
    return nn.Linear(2, 2)


@pytest.fixture
def scope():
    """A scope that the thread of the test has entered."""
    with CallScope() as entered:
        yield entered


def test_transforms_are_applied_in_order_and_undone(scope):
    linear = module()
    plain = linear(STATE)
    restore = [wrap_forward(linear, transform, scope) for transform in (double, add_one)]
    assert torch.equal(linear(STATE), 2 * plain + 1)
    restore[0]()
    assert torch.equal(linear(STATE), plain + 1)
    restore[1]()
    assert torch.equal(linear(STATE), plain)
    assert "forward" not in linear.__dict__


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_transforms_may_be_undone_in_any_order(scope, order):
    linear = module()
    plain = linear(STATE)
    restore = [wrap_forward(linear, transform, scope) for transform in (double, double, add_one)]
    for number in order:
        assert not torch.equal(linear(STATE), plain)
        restore[number]()
    assert torch.equal(linear(STATE), plain)
    assert "forward" not in linear.__dict__


def test_several_transforms_of_an_output_that_is_no_tensor(scope):
    class Both(nn.Module):
        def forward(self, state):
            return state, None

    both = Both()
    for _ in range(2):
        wrap_forward(both, lambda output, tracing: (2 * output[0], *output[1:]), scope)
    with torch.enable_grad():
        doubled, nothing = both(STATE)
    assert torch.equal(doubled, 4 * STATE)
    assert nothing is None


def test_every_thread_has_its_own_transforms():
    linear = module()
    plain, seen, both_registered = linear(STATE), {}, threading.Barrier(2)

    def run(transform):
        with CallScope() as scope:
            restore = wrap_forward(linear, transform, scope)
            both_registered.wait()
            seen[transform] = linear(STATE)
            both_registered.wait()
            restore()

    threads = [threading.Thread(target=run, args=(transform,)) for transform in (double, add_one)]
    for thread in threads:
        thread.start()
    assert torch.equal(linear(STATE), plain)
    for thread in threads:
        thread.join()
    assert torch.equal(seen[double], 2 * plain)
    assert torch.equal(seen[add_one], plain + 1)
    assert "forward" not in linear.__dict__


def test_every_asyncio_task_has_its_own_transforms():
    """Both tasks run in one thread, and each is suspended while its transform is registered."""
    linear = module()
    plain, seen = linear(STATE), {}

    async def run(transform):
        with CallScope() as scope:
            restore = wrap_forward(linear, transform, scope)
            await asyncio.sleep(0)
            seen[transform] = linear(STATE)
            await asyncio.sleep(0)
            restore()

    async def run_both():
        await asyncio.gather(run(double), run(add_one))

    asyncio.run(run_both())
    assert torch.equal(seen[double], 2 * plain)
    assert torch.equal(seen[add_one], plain + 1)
    assert "forward" not in linear.__dict__


def test_a_transform_applies_while_its_scope_is_the_last_one_that_was_entered():
    """A call inside a call has its own transforms."""
    linear = module()
    plain, scopes = linear(STATE), (CallScope(), CallScope())
    restore = [wrap_forward(linear, transform, scope) for transform, scope in zip((double, add_one), scopes, strict=True)]
    assert torch.equal(linear(STATE), plain)
    with scopes[0]:
        assert torch.equal(linear(STATE), 2 * plain)
        with scopes[1]:
            assert torch.equal(linear(STATE), plain + 1)
        assert torch.equal(linear(STATE), 2 * plain)
        scopes[1].__enter__()
    assert [scope.is_active for scope in scopes] == [False, True]  # exited in another order than entered
    assert torch.equal(linear(STATE), plain + 1)
    scopes[1].__exit__()
    assert torch.equal(linear(STATE), plain)
    for undo in restore:
        undo()
    assert "forward" not in linear.__dict__


def test_accelerates_replacement_of_forward_is_restored(scope):
    linear = module()
    plain = linear(STATE)

    class Negate(ModelHook):
        def post_forward(self, module, output):
            return -output

    add_hook_to_module(linear, Negate())
    theirs = linear.forward
    restore = wrap_forward(linear, double, scope)
    assert torch.equal(linear(STATE), -2 * plain)
    restore()
    assert linear.forward is theirs
    remove_hook_from_module(linear)
    assert torch.equal(linear(STATE), plain)


def test_a_later_replacement_of_forward_is_kept(scope):
    linear = module()
    plain = linear(STATE)
    restore = wrap_forward(linear, double, scope)
    wrapped = linear.forward
    linear.forward = lambda state: -wrapped(state)
    assert torch.equal(linear(STATE), -2 * plain)
    restore()
    assert torch.equal(linear(STATE), -plain)


def test_a_copy_of_a_wrapped_module_has_the_original_forward(scope):
    linear = module()
    plain = linear(STATE)
    restore = wrap_forward(linear, double, scope)
    other = copy.deepcopy(linear)
    restore()
    assert torch.equal(other(STATE), plain)
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.zero_()
    assert torch.equal(other(STATE), plain)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_repeats_shared_transforms_in_autograds_thread(reentrant):
    linear, state = module(), STATE.clone().requires_grad_()
    scale = torch.ones((), requires_grad=True)
    restore = wrap_forward(linear, lambda output, tracing: output * (2 + scale), CallScope(shared=True))
    loss = checkpoint(lambda x: linear(linear(x)), state, use_reentrant=reentrant).sum()
    thread = threading.Thread(target=loss.backward)  # as on a GPU
    thread.start()
    thread.join()
    again = STATE.clone().requires_grad_()
    linear(linear(again)).sum().backward()
    torch.testing.assert_close(state.grad, again.grad)
    restore()


def test_checkpointing_does_not_repeat_the_transforms_of_another_threads_call(scope):
    linear, state = module(), STATE.clone().requires_grad_()
    restore = wrap_forward(linear, double, CallScope(shared=True))
    loss = checkpoint(linear, state, use_reentrant=False).sum()
    of_a_call = wrap_forward(linear, double, scope)  # in this thread, while autograd's thread computes the state again
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    torch.testing.assert_close(state.grad, 2 * linear.weight.sum(0, keepdim=True))
    for undo in (restore, of_a_call):
        undo()


def test_a_thread_with_a_copy_of_the_context_is_not_in_the_scope():
    linear = module()
    plain = linear(STATE)

    async def run():
        with CallScope() as scope:
            restore = wrap_forward(linear, double, scope)
            inside, outside = linear(STATE), await asyncio.to_thread(linear, STATE)
            restore()
        return inside, outside

    inside, outside = asyncio.run(run())
    assert torch.equal(inside, 2 * plain)
    assert torch.equal(outside, plain)


def test_original_forward_returns_the_replacement_of_another_library(scope):
    linear = module()
    assert original_forward(linear) is None
    restore = wrap_forward(linear, double, scope)
    assert original_forward(linear) is None
    restore()
    linear.forward = theirs = lambda state: state
    restore = wrap_forward(linear, double, scope)
    assert original_forward(linear) is theirs
    restore()
    assert linear.forward is theirs


def test_a_wrapper_is_used_again_for_the_same_forward_only(scope):
    """A compiled model stays valid while it finds the same wrapper; another module or forward needs a new one."""
    wrappers, linear, other = Wrappers(), module(), module()
    first = wrappers.of("layer", linear)
    assert wrappers.of("layer", linear) is first
    assert wrappers.of("another layer", linear) is not first
    assert wrappers.of("layer", other) is not first
    assert wrappers.of("layer", linear) is not first  # the last one of this name was of the other module
    replaced = wrappers.of("layer", linear)
    linear.forward = lambda states: states
    assert wrappers.of("layer", linear) is not replaced
    restore = wrap_forward(linear, double, scope, lambda each: wrappers.of("layer", each))
    assert torch.equal(linear(STATE), 2 * STATE)
    restore()
    assert torch.equal(linear(STATE), STATE)
    del linear.forward
    assert torch.equal(linear(STATE), other(STATE))


def test_a_forward_that_is_changed_in_the_class_is_called(monkeypatch, scope):
    class Layer(nn.Linear):
        pass

    class Doubling(Layer):
        def forward(self, state):
            return 2 * super().forward(state)

    layer, wrappers = Layer(2, 2), Wrappers()

    def wrapped():
        undo = wrap_forward(layer, add_one, scope, lambda module: wrappers.of("layer", module))
        output = layer(STATE)
        undo()
        return output

    plain = layer(STATE)
    assert torch.equal(wrapped(), plain + 1)
    first = wrappers["layer"]
    assert torch.equal(wrapped(), plain + 1)
    assert wrappers["layer"] is first
    monkeypatch.setattr(Layer, "forward", lambda self, state: -nn.Linear.forward(self, state))
    assert torch.equal(wrapped(), -plain + 1)
    monkeypatch.undo()
    layer.__class__ = Doubling
    assert torch.equal(wrapped(), 2 * plain + 1)
