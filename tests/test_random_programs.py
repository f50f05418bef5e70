"""Random programs: after every step a RoadModel gives what dense matrices give on a clean copy of its base model.

`make test` runs 25 programs that compile nothing, `make test-soak` 2,000 (PROGRAMS=2000).
"""

from __future__ import annotations

import asyncio
import copy
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from transformers import LogitsProcessorList

from helpers.models import CAN_COMPILE, random_adapter, tiny_model
from road_interp.adapters.bank import RoadBank
from road_interp.adapters.joined_names import BASE
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.errors import InputError
from road_interp.models.road_model import RoadModel
from road_interp.sites.find import find_sites

PROGRAMS = int(os.environ.get("PROGRAMS", "25"))
COMPILED = CAN_COMPILE and PROGRAMS > 100  # a compilation takes as long as ten programs
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]])
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
GREEDY = {"do_sample": False, "max_new_tokens": 3, "min_new_tokens": 3, "pad_token_id": 2}
TASKS = ("x", "y")
ROWS = st.lists(st.sampled_from([0, 0.5, 1, -1]), min_size=3, max_size=3)


@contextmanager
def dense(model, adapters):
    """Every row of the outputs at the sites is multiplied by the matrix of the row's adapter; None leaves a row as it is."""

    def hook(site):
        identity = torch.eye(site.width)
        matrices = {adapter: identity if adapter is None else adapter.matrix(site) for adapter in set(adapters)}
        matrices = torch.stack([matrices[adapter] for adapter in adapters])

        def multiply(module, args, output):
            states = output[0] if isinstance(output, tuple) else output
            turned = torch.einsum("rij,rtj->rti", matrices.to(states), states)
            return (turned, *output[1:]) if isinstance(output, tuple) else turned

        return multiply

    sites = next(each.sites for each in adapters if each is not None) if any(each is not None for each in adapters) else ()
    handles = [model.get_submodule(site.module).register_forward_hook(hook(site), prepend=True) for site in sites]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def shifted(module, args, output):
    """A hook of the user, which acts on the output of its module, at a site on the rotated one."""
    states = output[0] if isinstance(output, tuple) else output
    moved = states + torch.linspace(-0.1, 0.1, states.shape[-1], dtype=states.dtype)
    return (moved, *output[1:]) if isinstance(output, tuple) else moved


class Programs(RuleBasedStateMachine):
    """One model and the same adapters as dense matrices on a clean copy of its base."""

    def __init__(self):
        super().__init__()
        self.open = ExitStack()
        self.model = None
        self.attached = False
        self.merged = None  # the adapters of the rows while they are merged
        self.strengths = (1, 1, 1)  # of the open `attached`
        self.hooks = []

    @initialize(
        kind=st.sampled_from(["adapter", "bank", "tasks"]),
        where=st.sampled_from(["all-linear", "mlp", "block-output"]),
        lora=st.booleans(),
        seed=st.integers(0, 5),
        compiles=st.sampled_from([False] * 6 + [True]),  # once: tracing takes two seconds
    )
    def start(self, kind, where, lora, seed, compiles):
        base = tiny_model("Llama", "causal-lm", attn_implementation="eager").eval()
        if lora:
            peft = pytest.importorskip("peft", reason="a PEFT LoRA underneath needs the extra [peft]")
            where = "mlp" if where == "mlp" else "block-output"  # whose modules LoRA does not replace
            targets = ["q_proj"] if where == "mlp" else ["q_proj", "down_proj"]
            options = {"r": 2, "target_modules": targets, "init_lora_weights": False}
            base = peft.get_peft_model(base, peft.LoraConfig(**options)).get_base_model().eval()
        self.clean, self.kind, self.target, self.compiles = copy.deepcopy(base), kind, where, compiles
        self.sites = find_sites(base, where)
        self.adapters = {name: random_adapter(self.sites, seed=seed + number) for number, name in enumerate("ab")}
        self.planes = TaskPlanes.split(TASKS, self.sites) if kind == "tasks" else None
        given = RoadBank(self.adapters) if kind == "bank" else self.adapters["a"]
        self.model = RoadModel(base, given, planes=self.planes)

    # what a call selects, as arguments and as adapters of the rows

    def selection(self, strengths=(1, 1, 1)):
        powers = [float(each) for each in strengths]
        if self.kind == "bank":
            names = ["a", BASE, list(self.adapters)[-1]]
            rows = [None if name == BASE else self.adapters[name] for name in names]
            arguments = {"adapter_names": names}
        elif self.kind == "tasks":
            tasks = ["x", "y", BASE]
            arguments = {"tasks": tasks}
            rows = [None if task == BASE else self.adapters["a"].restrict(self.planes.of(task)) for task in tasks]
        else:
            rows, arguments = [self.adapters["a"]] * 3, {}
        if any(power != 1 for power in powers):
            arguments["strengths"] = powers
        return arguments, [row if row is None or power == 1 else row**power for row, power in zip(rows, powers, strict=True)]

    def check(self, logits, rows, rtol=2e-3, atol=2e-4):
        with dense(self.clean, rows), torch.no_grad():
            expected = self.clean(**INPUTS).logits
        torch.testing.assert_close(logits.float(), expected, rtol=rtol, atol=atol)

    def is_free(self):
        return not self.attached and not self.merged

    @invariant()
    @torch.no_grad()
    def outputs_are_those_of_matrices(self):
        arguments, rows = ({}, self.merged) if self.merged else self.selection(self.strengths)
        output = self.model(base=INPUTS, **arguments)[1] if self.is_free() else self.model.model(**INPUTS)
        self.check(output.logits, rows)

    # calls

    @rule(strengths=ROWS)
    @torch.no_grad()
    def call(self, strengths):
        if self.is_free():
            arguments, rows = self.selection(strengths)
            self.check(self.model(base=INPUTS, **arguments)[1].logits, rows)
            self.check(self.model.model(**INPUTS).logits, [None])
            return
        self.check(self.model(base=INPUTS)[1].logits, self.merged or self.selection(self.strengths)[1])
        with pytest.raises(InputError, match="cannot change"):
            self.model(base=INPUTS, strengths=[1, 1, 1])

    @precondition(lambda self: self.is_free())
    @rule(strengths=ROWS)
    def generate(self, strengths):
        arguments, rows = self.selection(strengths)
        ids = self.model.generate(INPUTS, **arguments, **GREEDY)[1]
        with dense(self.clean, rows):
            expected = self.clean.generate(**INPUTS, **GREEDY)
        assert torch.equal(ids, expected)

    @precondition(lambda self: self.is_free())
    @rule(strengths=ROWS)
    def call_inside_generate(self, strengths):
        """As from a logits processor: the call has its own rotations, and the generation goes on with those that it had."""
        (arguments, rows), (inner, inner_rows) = self.selection(), self.selection(strengths)
        seen = []

        def call(ids, scores):
            seen.append(self.model(base=INPUTS, **inner)[1].logits)
            return scores

        ids = self.model.generate(INPUTS, **arguments, **GREEDY, logits_processor=LogitsProcessorList([call]))[1]
        with dense(self.clean, rows):
            assert torch.equal(ids, self.clean.generate(**INPUTS, **GREEDY))
        for logits in seen:
            self.check(logits, inner_rows)

    @precondition(lambda self: self.is_free())
    @rule()
    def threads(self):
        choices = [self.selection(), self.selection([0.5, 1, -1])]
        with ThreadPoolExecutor(2) as pool, torch.no_grad():
            logits = list(pool.map(lambda choice: self.model(base=INPUTS, **choice[0])[1].logits.detach(), choices * 2))
        for found, (_, rows) in zip(logits, choices * 2, strict=True):
            self.check(found, rows)

    @precondition(lambda self: self.is_free())
    @rule()
    def coroutines(self):
        """One waits inside `attached`, whose rotations the other finds while it waits, and finds gone afterwards."""
        arguments, rows = self.selection([0, 1, 0.5])
        seen = []

        async def inside():
            with self.model.attached(**arguments) as base:
                seen.append("attached")
                await asyncio.sleep(0)
                self.check(base(**INPUTS).logits, rows)
            seen.append("detached")

        async def beside():
            assert seen == ["attached"]
            self.check(self.model(base=INPUTS)[1].logits, rows)
            with pytest.raises(InputError, match="cannot change"):
                self.model(base=INPUTS, strengths=[1, 1, 1])
            while seen == ["attached"]:
                await asyncio.sleep(0)
            self.check(self.model.model(**INPUTS).logits, [None])
            again, expected = self.selection()
            self.check(self.model(base=INPUTS, **again)[1].logits, expected)

        async def both():
            await asyncio.gather(inside(), beside())

        with torch.no_grad():
            asyncio.run(both())

    # states

    @precondition(lambda self: self.is_free())
    @rule(strengths=ROWS)
    def attach(self, strengths):
        self.open.enter_context(self.model.attached(**self.selection(strengths)[0]))
        self.attached, self.strengths = True, strengths

    @precondition(lambda self: self.attached)
    @rule()
    def detach(self):
        self.open.close()
        self.attached, self.strengths = False, (1, 1, 1)

    @precondition(lambda self: self.is_free() and self.kind != "tasks")
    @rule()
    def merge(self):
        name = "a" if self.kind == "bank" else None
        if self.target == "block-output":
            with pytest.raises(InputError, match="linear"):
                self.model.merge(name)
            return
        self.model.merge(name)
        self.merged = [self.adapters["a"]] * 3

    @precondition(lambda self: self.merged)
    @rule()
    def unmerge(self):
        self.model.unmerge()
        self.merged = None
        for (_, found), (_, expected) in zip(self.model.model.named_parameters(), self.clean.named_parameters(), strict=True):
            assert torch.equal(found, expected)

    # changes

    @precondition(lambda self: self.is_free() and self.kind == "bank" and "c" not in self.adapters)
    @rule(seed=st.integers(0, 9))
    def add(self, seed):
        self.adapters["c"] = random_adapter(self.sites, seed=seed)
        self.model.bank.add("c", self.adapters["c"])

    @precondition(lambda self: self.is_free() and self.kind == "bank" and "c" in self.adapters)
    @rule()
    def remove(self):
        del self.adapters["c"]
        self.model.bank.remove("c")
        with pytest.raises(InputError, match="unknown adapter 'c'; the bank holds"):
            self.model(base=INPUTS, adapter_names=["c"] * 3)

    @precondition(lambda self: self.kind == "bank")
    @rule(seed=st.integers(10, 19))
    def replace(self, seed):
        self.adapters["b"] = random_adapter(self.sites, seed=seed)
        self.model.bank.replace("b", self.adapters["b"])

    @precondition(lambda self: self.kind != "bank")
    @rule(seed=st.integers(20, 29))
    def change_parameters(self, seed):
        """Merged weights do not follow them, so that the next call is an error."""
        torch.manual_seed(seed)
        parameters = [each for each in self.model.parameters() if each.requires_grad]
        before = [each.detach().clone() for each in parameters]
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(0.05 * torch.randn_like(parameter))
            if self.merged:
                with pytest.raises(InputError, match="have changed since they were merged"):
                    self.model(base=INPUTS)
                for parameter, values in zip(parameters, before, strict=True):
                    parameter.copy_(values)
        self.adapters["a"] = self.model.adapter

    @precondition(lambda self: self.is_free() and not self.hooks)
    @rule(at_site=st.booleans())
    def hook(self, at_site):
        for each in (self.model.model, self.clean):
            module = each.get_submodule(self.sites[0].module) if at_site else each.get_output_embeddings()
            self.hooks.append(module.register_forward_hook(shifted))

    @precondition(lambda self: self.is_free() and self.hooks)
    @rule()
    def unhook(self):
        for handle in self.hooks:
            handle.remove()
        self.hooks = []

    @precondition(lambda self: not self.attached and not self.hooks)
    @rule()
    def deepcopy(self):
        before = self.model
        self.model = copy.deepcopy(before)
        assert self.model.model is not before.model

    @precondition(lambda self: self.is_free() and self.kind != "bank")
    @rule()
    def save_and_load(self):
        with TemporaryDirectory() as folder:
            self.model.adapter.save(Path(folder) / "adapter")
            again = RoadAdapter.load(Path(folder) / "adapter")
        assert again.distance(self.model.adapter) == 0
        self.model = RoadModel(self.model.model, again, planes=self.planes)

    @precondition(lambda self: self.is_free() and self.kind != "bank")
    @rule()
    def save_and_load_with_pyvene(self):
        with TemporaryDirectory() as folder:
            self.model.save(Path(folder) / "model")
            self.model = RoadModel.load(Path(folder) / "model", self.model.model)
        assert self.model.sites == self.sites
        if self.planes is not None:
            assert self.model.planes.to_json() == self.planes.to_json()

    @precondition(lambda self: self.is_free() and self.kind == "bank")
    @rule()
    def save_and_load_a_bank(self):
        with TemporaryDirectory() as folder:
            for name, adapter in self.model.bank.items():
                adapter.save(Path(folder) / name)
            self.model = RoadModel(self.model.model, RoadBank.from_folder(folder))
            assert list(self.model.bank) == sorted(self.adapters)
            self.model(base=INPUTS, adapter_names=["a", "b", list(self.adapters)[-1]])  # reads the files

    @precondition(lambda self: self.is_free())
    @rule()
    def there_and_back(self):
        self.model.to(torch.float64)
        arguments, rows = self.selection()
        with torch.no_grad():
            self.check(self.model(base=INPUTS, **arguments)[1].logits.float(), rows)
        self.model.to(torch.float32)

    @precondition(lambda self: self.is_free() and not self.hooks)
    @rule()
    def in_bf16(self):
        rounded, (arguments, rows) = copy.deepcopy(self.model).to(torch.bfloat16), self.selection()
        with torch.no_grad():
            self.check(rounded(base=INPUTS, **arguments)[1].logits.float(), rows, rtol=0.05, atol=0.02)

    @precondition(lambda self: self.kind != "bank" and not self.attached and not self.merged)
    @rule()
    def gradient_checkpointing_step(self):
        arguments, _ = self.selection()
        parameters = [each for each in self.model.parameters() if each.requires_grad]
        plain = torch.autograd.grad(self.model(base=INPUTS, **arguments)[1].logits.square().mean(), parameters)
        self.model.model.train()
        self.model.model.gradient_checkpointing_enable()
        with self.model.attached(**arguments) as base:
            base(**INPUTS, use_cache=False).logits.square().mean().backward()
        self.model.model.gradient_checkpointing_disable()
        self.model.model.eval()
        with torch.no_grad():
            for parameter, gradient in zip(parameters, plain, strict=True):
                torch.testing.assert_close(parameter.grad, gradient)
                parameter.sub_(parameter.grad)
                parameter.grad = None
        self.adapters["a"] = self.model.adapter

    @precondition(lambda self: self.attached and self.compiles and COMPILED)
    @rule()
    @torch.no_grad()
    def compile(self):
        self.compiles = False
        torch._dynamo.reset()
        self.check(torch.compile(self.model.model, backend="eager")(**INPUTS).logits, self.selection(self.strengths)[1])

    def teardown(self):
        self.open.close()


def test_random_programs_equal_dense_matrices():
    run_state_machine_as_test(
        Programs,
        settings=settings(
            max_examples=PROGRAMS,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        ),
    )
