"""The arguments of transformers' `generate` that decide whether rotations of rows and tokens can be told apart in it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from transformers import Cache, DynamicCache, GenerationConfig, PreTrainedModel

from road_interp.arguments import check_argument
from road_interp.errors import InputError
from road_interp.models.call_stack import GENERATE, runs_inside
from road_interp.sites.positions import Positions

COMPILING_DEVICES = ("cuda", "xpu", "neuron", "tpu")  # on which transformers compiles without being asked


def arguments_of_generate(
    generate: Callable[..., Any], main_input: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The arguments of a bound `generate` by name, with `inputs` under the name of the model's main input."""
    names = list(inspect.signature(generate).parameters)
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    inputs = given.pop("inputs", None)
    return given if inputs is None else {**given, main_input: inputs}


def generation_setting(model: PreTrainedModel, inputs: Mapping[str, Any], name: str) -> Any:
    """A setting of `generate`: its keyword, also None, or else that of the given config, or where it is None of the model's."""
    if name in inputs:
        return inputs[name]
    given = getattr(inputs.get("generation_config"), name, None)
    return getattr(getattr(model, "generation_config", None), name, None) if given is None else given


def complete_config(model: PreTrainedModel, given: GenerationConfig | None) -> GenerationConfig:
    """The given settings, and those of the model where they are None, as `generate` completes them."""
    check_config(given)
    config = copy.deepcopy(model.generation_config if given is None else given)
    config.update(**model.generation_config.to_dict(), defaults_only=True)
    return config


def check_config(given: Any) -> None:
    """Raise InputError for settings of the generation that are no GenerationConfig."""
    if given is not None:
        check_argument("generation_config", given, GenerationConfig, "GenerationConfig(max_new_tokens=20)")


def check_generation(model: PreTrainedModel, inputs: Mapping[str, Any], by_row: bool, positions: Positions) -> None:
    """Raise InputError where `generate` computes states whose rotations are not known.

    A paged cache is that of an engine with a thread of its own. Classifier-free guidance has unconditional rows: some models put
    them behind the others, so that rows have no order; all others compute them in calls of their own, whose prompt is another
    than that in which positions are found.

    Args:
        inputs: all arguments of `generate`, by name.
        by_row: whether rows have an adapter, task or strength of their own.
    """
    check_config(inputs.get("generation_config"))
    if generation_setting(model, inputs, "cache_implementation") == "paged":
        raise InputError("cache_implementation='paged' runs an engine in a thread of its own: use RoadModel.generate_batch")
    kind, scale = model.config.model_type, generation_setting(model, inputs, "guidance_scale")
    doubles = {
        "dia": scale not in (None, 1),
        "janus": inputs.get("generation_mode") == "image",
        **dict.fromkeys(("musicgen", "musicgen_melody"), scale is not None and scale > 1),
    }
    if by_row and doubles.get(kind, False):
        raise InputError(
            f"{type(model).__name__} doubles the rows for guidance: with an adapter, task or strength per row, generate for one "
            "row at a time"
        )
    if by_row and kind == "whisper" and (setting := _moves_rows(model, inputs)) is not None:
        raise InputError(
            f"{type(model).__name__} drops rows whose audio has ended, and with {setting} others would take their places: with "
            "an adapter, task or strength per row, generate without it"
        )
    owner = getattr(getattr(model, "prepare_inputs_for_generation", None), "__self__", model)  # PEFT's model inside its generate
    if positions != "all" and getattr(getattr(owner, "active_peft_config", None), "is_prompt_learning", False):
        raise InputError(
            f"PEFT's prompt learning puts tokens or keys of its own before the prompt, so that positions {positions!r} cannot be "
            "found in its generate: only positions='all' works there"
        )
    generates: Any = model
    shifts = inspect.signature(generates.generate).parameters.get("concat_unconditional_inputs")  # of Moshi
    if positions != "all" and shifts is not None and inputs.get(shifts.name, shifts.default):
        raise InputError(
            f"{type(model).__name__} puts a token of its own before the prompt, so that positions {positions!r} would be those "
            f"of other tokens: use positions='all', or {shifts.name}=False"
        )
    if positions != "all" and scale not in (None, 1):
        raise InputError(
            f"guidance_scale={scale} computes a second prompt, in which positions {positions!r} cannot be found: only "
            "positions='all' works with guidance"
        )


def check_locations(model: PreTrainedModel, inputs: Mapping[str, Any], unit_locations: Any, intervene_on_prompt: bool) -> None:
    """Raise InputError where pyvene's arguments leave open which tokens are rotated, or settings make them others.

    pyvene takes the first pass for the prompt, and tokens of every later one for those of a generated token.

    Args:
        inputs: all arguments of `generate`, by name.
    """
    if unit_locations is None:
        if not intervene_on_prompt:
            raise InputError(
                "generate with pyvene's arguments and without unit_locations rotates the generated tokens only: give "
                "unit_locations={'base': 0} if that is meant, or intervene_on_prompt=True for every token"
            )
        return
    known = {"use_cache": (None, True), "prefill_chunk_size": (None,), "prompt_lookup_num_tokens": (None,)}
    found = {name: generation_setting(model, inputs, name) for name in known}
    other = {name: value for name, value in found.items() if value not in known[name]}
    if inputs.get("assistant_model") is not None:
        other["assistant_model"] = type(inputs["assistant_model"]).__name__
    if other:
        name, value = next(iter(other.items()))
        raise InputError(
            f"{name}={value} makes passes of several tokens, in which unit_locations of generate would be other ones than the "
            "prompt's or the generated: leave it out, or use positions"
        )


def copied_subspaces(model: PreTrainedModel, inputs: Mapping[str, Any], subspaces: Any) -> Any:
    """pyvene's `subspaces`, with those of a row of the batch for every row that `generate` makes of it in a pass."""
    beams, sequences = (generation_setting(model, inputs, name) or 1 for name in ("num_beams", "num_return_sequences"))
    copies = int(beams if beams > 1 else sequences)
    return [rows and [row for row in rows for _ in range(copies)] for rows in subspaces]


def _moves_rows(model: PreTrainedModel, inputs: Mapping[str, Any]) -> str | None:
    """A setting with which the rows that Whisper goes on with fill the places of those that it has dropped; None without one."""
    for name in ("num_beams", "num_return_sequences"):
        if ((copies := generation_setting(model, inputs, name)) or 1) > 1:
            return f"{name}={copies}"
    if (cache := generation_setting(model, inputs, "cache_implementation")) == "static":  # which keeps its number of rows
        return f"cache_implementation='{cache}'"
    return None


def compiles_generation(model: PreTrainedModel, inputs: Mapping[str, Any]) -> bool:
    """Whether `generate` may decode with compiled code: with a cache of fixed size, on an accelerator or where it is asked to.

    Args:
        inputs: all arguments of `generate`, by name.
    """
    if generation_setting(model, inputs, "disable_compile"):
        return False
    is_asked = generation_setting(model, inputs, "compile_config") is not None
    wants_static = "static" in str(generation_setting(model, inputs, "cache_implementation"))
    caches = [each for each in inputs.values() if isinstance(each, Cache) and type(each) is not DynamicCache]
    is_static = wants_static or any(each.is_compileable for each in caches)
    return is_static and (is_asked or model.device.type in COMPILING_DEVICES)


def runs_in_generate() -> bool:
    """Whether a `generate` of transformers runs this code."""
    return runs_inside(GENERATE)
