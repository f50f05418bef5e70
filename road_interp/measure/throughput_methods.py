"""The methods of the throughput benchmark, all on the same frozen weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import CompileConfig, GenerationConfig, PreTrainedModel

from road_interp.adapters.bank import RoadBank
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.errors import InputError
from road_interp.measure.call_cost import Call
from road_interp.measure.stacked_lora import StackedLora, row_of, shared_copy
from road_interp.models.batching_engine import make_engine
from road_interp.models.intervention import pyvene
from road_interp.models.road_model import RoadModel
from road_interp.models.seeding import generator_of
from road_interp.sites.find import find_sites
from road_interp.sites.site import Site

RANK = 8  # of LoRA
CHUNK = 8  # prompts of continuous batching have lengths that are multiples of it, up to LONGEST
LONGEST = 64
METHODS = ("bare", "merged", "RoadModel", "pyvene loop", "PEFT RoAd", "PEFT LoRA", "PEFT OFT", "stacked LoRA")


class ThroughputMethods:
    """All methods on the same frozen weights. A method is built on first use; copies share the tensors that they do not change.

    Args:
        base: a causal language model, which is frozen, so that no method computes gradients of the shared weights.
        rows: largest batch size; as many adapters are made.
    """

    def __init__(self, base: PreTrainedModel, rows: int) -> None:
        self.base: Any = base.requires_grad_(False)
        self.sites = find_sites(base, "all-linear")
        self.adapters = {f"a{n}": random_adapter(self.sites, n) for n in range(rows)}
        self._kinds = sorted({site.name.rpartition(".")[2] for site in self.sites})

    @cached_property
    def merged(self) -> Any:
        """One adapter, merged into the weights."""
        return RoadModel(copy.deepcopy(self.base), self.adapters["a0"]).merge()

    @cached_property
    def road(self) -> RoadModel:
        """RoadModel with one adapter."""
        return RoadModel(shared_copy(self.base), self.adapters["a0"])

    @cached_property
    def banked(self) -> RoadModel:
        """RoadModel with one adapter per row."""
        return RoadModel(shared_copy(self.base), RoadBank(self.adapters))

    @cached_property
    def compiled_banked(self) -> RoadModel:
        """RoadModel with one adapter per row, on a copy of its own: compiled code belongs to its modules."""
        return RoadModel(shared_copy(self.base), RoadBank(self.adapters))

    @cached_property
    def pyvene(self) -> RoadModel:
        """A RoadModel with one adapter that is run by pyvene's own loop."""
        return RoadModel(shared_copy(self.base), self.adapters["a0"])

    @cached_property
    def peft_road(self) -> Any:
        """PEFT's RoAd with one adapter per row."""
        return self._peft("RoadConfig", list(self.adapters), variant="road_1", group_size=2, init_weights=False)

    @cached_property
    def peft_lora(self) -> Any:
        """PEFT's LoRA with one adapter per row."""
        return self._peft("LoraConfig", list(self.adapters), r=RANK, lora_alpha=RANK, init_lora_weights=False)

    @cached_property
    def peft_oft(self) -> Any:
        """PEFT's OFT with 2 x 2 matrices and the exact Cayley transform: the maps of a road_1 of magnitude 1, on inputs."""
        return self._peft("OFTConfig", ["default"], oft_block_size=2, use_cayley_neumann=False)

    @cached_property
    def lora(self) -> StackedLora:
        """LoRA with one adapter as two matrix products per layer."""
        return StackedLora(self.base, self.sites, 1, RANK)

    @cached_property
    def stacked(self) -> StackedLora:
        """LoRA as two batched matrix products per layer."""
        return StackedLora(self.base, self.sites, len(self.adapters), RANK)

    def _peft(self, config: str, names: Sequence[str], **options: Any) -> Any:
        """A PEFT model with adapters named `names` on the linear layers of all sites. Raises InputError if PEFT is missing."""
        try:
            import peft
        except ImportError:
            raise InputError("the benchmark compares with PEFT: pip install peft") from None
        settings = getattr(peft, config)(target_modules=self._kinds, **options)
        # Adapters in the dtype of the base: with those in fp32, PEFT's RoAd cannot mix them in bf16.
        model: Any = peft.get_peft_model(shared_copy(self.base), settings, adapter_name=names[0], autocast_adapter_dtype=False)
        for name in names[1:]:
            model.add_adapter(name, settings, autocast_adapter_dtype=False)
        return model.eval()

    def _with_one_lora(self, run: Callable[[Any], Any]) -> Call:
        """`run` on the model of LoRA with one adapter."""

        def call() -> Any:
            with self.lora.one_adapter():
                return run(self.lora.model)

        return call

    def _generate_with_lora(
        self, ids: Tensor, new_tokens: int, adapters: Callable[[StackedLora], AbstractContextManager[None]]
    ) -> Call:
        """Generation with the model of stacked LoRA."""
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

        def call() -> Any:
            with adapters(self.stacked):
                return self.stacked.model.generate(**inputs, **_greedy(new_tokens))

        return call

    def forward(self, ids: Tensor) -> dict[str, Call]:
        """Forward passes with one adapter."""
        inputs = {"input_ids": ids, "use_cache": False}
        return {
            "bare": lambda: self.base(**inputs),
            "merged": lambda: self.merged(**inputs),
            "RoadModel": lambda: self.road(base=inputs),
            "pyvene loop": lambda: pyvene.IntervenableModel.forward(self.pyvene, inputs),
            "PEFT RoAd": lambda: self.peft_road(**inputs),
            "PEFT LoRA": lambda: self.peft_lora(**inputs),
            "PEFT OFT": lambda: self.peft_oft(**inputs),
            "stacked LoRA": self._with_one_lora(lambda model: model(**inputs)),
        }

    def training(self, ids: Tensor) -> dict[str, Call]:
        """Losses of training steps. That of the frozen bare model has a gradient with respect to its input embeddings."""
        inputs = {"input_ids": ids, "labels": ids, "use_cache": False}
        embed = self.base.get_input_embeddings()

        def frozen() -> Tensor:
            states = embed(ids).detach().requires_grad_()
            return self.base(inputs_embeds=states, labels=ids, use_cache=False).loss

        return {
            "bare": frozen,
            "RoadModel": lambda: self.road(base=inputs)[1].loss,
            "pyvene loop": lambda: pyvene.IntervenableModel.forward(self.pyvene, inputs)[1].loss,
            "PEFT RoAd": lambda: self.peft_road(**inputs).loss,
            "PEFT LoRA": lambda: self.peft_lora(**inputs).loss,
            "PEFT OFT": lambda: self.peft_oft(**inputs).loss,
            "stacked LoRA": self._with_one_lora(lambda model: model(**inputs).loss),
        }

    def generate(self, ids: Tensor, new_tokens: int) -> dict[str, Call]:
        """Generation with a different adapter in every row."""
        names = list(self.adapters)[: len(ids)]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        options = _greedy(new_tokens)
        return {
            "bare": lambda: self.base.generate(**inputs, **options),
            "merged": lambda: self.merged.generate(**inputs, **options),
            "RoadModel": lambda: self.banked.generate(inputs, adapter_names=names, **options),
            "PEFT RoAd": lambda: self.peft_road.generate(**inputs, adapter_names=names, **options),
            "PEFT LoRA": lambda: self.peft_lora.generate(**inputs, adapter_names=names, **options),
            "stacked LoRA": self._generate_with_lora(ids, new_tokens, lambda lora: lora.per_row(len(ids))),
        }

    def one_lora(self, ids: Tensor, new_tokens: int, rank: int) -> dict[str, Call]:
        """Generation with one unmerged LoRA for all rows, and with a merged adapter (RoAd's: merged adapters cost the same)."""
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        options = _greedy(new_tokens)
        unmerged = self._peft("LoraConfig", ["default"], r=rank, lora_alpha=rank, init_lora_weights=False)
        stacked = StackedLora(self.base, self.sites, 1, rank)

        def alone() -> Tensor:
            with stacked.one_adapter():
                return stacked.model.generate(**inputs, **options)

        return {
            "bare": lambda: self.base.generate(**inputs, **options),
            "merged": lambda: self.merged.generate(**inputs, **options),
            "PEFT LoRA": lambda: unmerged.generate(**inputs, **options),
            "stacked LoRA": alone,
        }

    def few_and_many(self, ids: Tensor, new_tokens: int) -> dict[str, Call]:
        """Generation with the same adapter in every row, and with a different one in every row."""
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        options = _greedy(new_tokens)
        names = list(self.adapters)[: len(ids)]
        return {
            "bare": lambda: self.base.generate(**inputs, **options),
            "RoadModel, one adapter": lambda: self.banked.generate(inputs, adapter_names=[names[0]] * len(ids), **options),
            "RoadModel, all different": lambda: self.banked.generate(inputs, adapter_names=names, **options),
            "stacked LoRA, one adapter": self._generate_with_lora(ids, new_tokens, StackedLora.one_adapter),
            "stacked LoRA, all different": self._generate_with_lora(ids, new_tokens, lambda lora: lora.per_row(len(ids))),
        }

    def strengths(self, ids: Tensor, new_tokens: int) -> dict[str, Call]:
        """Generation with a different adapter in every row, as it is and at a different strength in every row."""
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        options = {**_greedy(new_tokens), "adapter_names": list(self.adapters)[: len(ids)]}
        strengths = [0.5 + row / len(ids) for row in range(len(ids))]
        factors = torch.tensor(strengths, device=ids.device, dtype=self.base.dtype)
        return {
            "bare": lambda: self.base.generate(**inputs, **_greedy(new_tokens)),
            "RoadModel": lambda: self.banked.generate(inputs, **options),
            "RoadModel, strengths": lambda: self.banked.generate(inputs, strengths=strengths, **options),
            "stacked LoRA": self._generate_with_lora(ids, new_tokens, lambda lora: lora.per_row(len(ids))),
            "stacked LoRA, strengths": self._generate_with_lora(ids, new_tokens, lambda lora: lora.per_row(len(ids), factors)),
        }

    def continuous(self, rows: int, new_tokens: int) -> dict[str, Call]:
        """transformers' continuous batching for prompts of different lengths: bare, with one adapter, and with all different.

        Every call makes the engine and ends it. The bare engine has the settings of the others (`ENGINE`).
        """
        lengths = [CHUNK * (1 + row % (LONGEST // CHUNK)) for row in range(rows)]
        prompts = [draw_ids(self.base, 1, length)[0].tolist() for length in lengths]
        names = list(self.adapters)[:rows]
        config = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, pad_token_id=0, eos_token_id=-1)
        sizes = (max(lengths), new_tokens, rows)

        def generated(model: Any, adapters: Callable[[Any], AbstractContextManager[None]]) -> list[list[int]]:
            engine = make_engine(model, config, None, sizes)
            with adapters(engine):
                engine.start()
                try:
                    engine.add_requests(prompts, max_new_tokens=new_tokens)
                    found = [engine.get_result(timeout=600) for _ in prompts]
                finally:
                    engine.stop(block=True)
                    engine.destroy()
            return [each.generated_tokens for each in sorted(found, key=lambda each: row_of(each.request_id))]

        def road(names: list[str]) -> list[Any]:
            return self.banked.generate_batch(prompts, names, max_new_tokens=new_tokens, generation_config=config)

        return {
            "bare": lambda: generated(self.base, lambda engine: nullcontext()),
            "RoadModel, one adapter": lambda: road(names[:1] * rows),
            "RoadModel, all different": lambda: road(names),
            "stacked LoRA, one adapter": lambda: generated(self.stacked.model, lambda engine: self.stacked.one_adapter()),
            "stacked LoRA, all different": lambda: generated(self.stacked.model, self.stacked.per_request),
        }

    def compiled_forward(self, ids: Tensor) -> dict[str, Call]:
        """Forward passes that inductor has compiled, with a different adapter in every row."""
        inputs = {"input_ids": ids, "use_cache": False}
        bare, base = torch.compile(shared_copy(self.base)), torch.compile(self.compiled_banked.model)
        lora = torch.compile(self._compiled_lora(len(ids)))

        def road() -> Any:
            with self.compiled_banked.attached(list(self.adapters)[: len(ids)]):
                return base(**inputs)

        return {"bare": lambda: bare(**inputs), "RoadModel": road, "stacked LoRA": lambda: lora(**inputs)}

    def compiled_decoding(self, ids: Tensor, new_tokens: int) -> dict[str, Call]:
        """Generation with a static cache and compiled steps, with a different adapter in every row."""
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        mode = "reduce-overhead" if self.base.device.type == "cuda" else "default"  # CUDA graphs
        compiled: Any = CompileConfig(fullgraph=True, dynamic=False, mode=mode)
        compiled._compile_all_devices = True  # by default transformers compiles on GPUs only
        options = {**_greedy(new_tokens), "cache_implementation": "static", "compile_config": compiled}
        names: list[str] = list(self.adapters)[: len(ids)]
        bare: Any = shared_copy(self.base)
        lora = self._compiled_lora(len(ids))
        return {
            "bare": lambda: bare.generate(**inputs, **options),
            "RoadModel": lambda: self.compiled_banked.generate(inputs, adapter_names=names, **options),
            "stacked LoRA": lambda: lora.generate(**inputs, **options),
        }

    def _compiled_lora(self, rows: int) -> Any:
        """A model of stacked LoRA with a different adapter in every row, which is compiled."""
        stacked = StackedLora(self.base, self.sites, rows, RANK)
        stacked.keep_per_row(rows)
        return stacked.model


def random_adapter(sites: Sequence[Site], seed: int) -> RoadAdapter:
    """A random road_1 adapter near the identity; its values do not affect the time."""
    generator = generator_of(seed)
    theta = {site.name: 0.05 * torch.randn(site.width // 2, generator=generator) for site in sites}
    alpha = {site.name: 1 + 0.05 * torch.randn(site.width // 2, generator=generator) for site in sites}
    return RoadAdapter(tuple(sites), theta, alpha)


def draw_ids(model: PreTrainedModel, rows: int, length: int) -> Tensor:
    """Random token ids `(rows, length)`, drawn on the CPU, whose seed is set."""
    return torch.randint(10, model.config.vocab_size, (rows, length)).to(model.device)


def _greedy(new_tokens: int) -> dict[str, Any]:
    return {"do_sample": False, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "pad_token_id": 0}
