"""Finding the places of a model where a rotation can act, by asking the model: no table of architectures.

The block stack is the module list that is as long as the configuration's number of layers. Widths come from the linears
themselves or from one forward pass on dummy inputs. Query and key are told from value by what reaches the block's output.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from road_interp.errors import InputError
from road_interp.site import Part, Site

PRESETS = ("all-linear", "attention-qk", "attention", "mlp", "fc1", "block-output")
Layers = int | str | Iterable[int] | None
Where = str | Site | Sequence[str | Site]
Hooks = list[tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]]  # how to register, the hook, options


def find_sites(model: PreTrainedModel, where: Where, layers: Layers = None, stack: str | None = None) -> tuple[Site, ...]:
    """The sites of `model` named by `where`, in the model's order.

    Args:
        model: any Hugging Face model.
        where: a preset; a pattern, which is a regular expression for a module's path or its end, as "query" or
            "h[.]0[.]attn[.]c_attn"; or a list of these and of `Site`s. The presets look inside the blocks only, so that
            embeddings and head stay out:

            - "all-linear": the output of every linear layer,
            - "attention-qk": queries and keys, also where they share one linear with the values,
            - "attention", "mlp": the linears of either half of a block,
            - "fc1": the feed-forward linears that come before its last one (gate and up in a gated one),
            - "block-output": the blocks' own output, the residual stream.
        layers: block indices from 0, negative from the end; an int, a list, a range, or text such as "10-29" or "0,2,-1".
        stack: path of the block stack for models that have two (encoder and decoder).

    Raises:
        InputError: nothing found, two stacks and none chosen, an odd width, an unknown layer.
    """
    entries = [where] if isinstance(where, str | Site) else list(where)
    found: dict[str, Site] = {}
    for entry in entries:
        if isinstance(entry, Site):
            chosen: Iterable[Site] = [entry]
        elif entry in PRESETS:
            chosen = _preset_sites(model, entry, stack)
        else:
            chosen = _pattern_sites(model, entry)
        found |= {site.name: site for site in chosen}
    sites = list(found.values())
    if layers is not None:
        depth = 1 + max((site.layer for site in sites if site.layer is not None), default=-1)
        if len(stacks := block_stacks(model)) == 1 or stack is not None:
            depth = len(stacks[stack or next(iter(stacks))])
        wanted = parse_layers(layers, depth)
        sites = [site for site in sites if site.layer in wanted]
    if not sites:
        raise InputError(f"no site of {type(model).__name__} matches {where!r} in layers {layers!r}")
    order = {name: index for index, name in enumerate(dict(model.named_modules()))}
    return tuple(sorted(sites, key=lambda site: (order.get(site.module, len(order)), site.part.start if site.part else 0)))


def block_stacks(model: PreTrainedModel) -> dict[str, nn.ModuleList]:
    """The module lists of `model` that are as long as a number of layers in its configuration, outermost only, by path."""
    config = model.config
    lengths = {
        getattr(part, key, None)
        for part in (config, config.get_text_config(), *vars(config).values())
        for key in ("num_hidden_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
    }
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(outer + ".") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) in lengths and not inside and len(set(map(type, module))) == 1:
            found[name] = module
    return found


def parse_layers(layers: Layers, depth: int) -> set[int]:
    """Layer indices from an int, an iterable of ints, or text ("3", "10-29" with both ends, "0,2,-1")."""
    if isinstance(layers, str):
        wanted: list[int] = []
        for piece in layers.split(","):
            if not (match := re.fullmatch(r"\s*(-?\d+)\s*(?:-\s*(\d+)\s*)?", piece)):
                raise InputError(f"layers '{layers}': '{piece}' is neither a number nor a range such as 10-29")
            first = int(match[1])
            wanted += range(first, int(match[2]) + 1) if match[2] else [first]
    else:
        wanted = [layers] if isinstance(layers, int) else list(layers or ())
    for layer in wanted:
        if isinstance(layer, bool) or not isinstance(layer, int) or not -depth <= layer < depth:
            raise InputError(f"layer {layer!r} does not exist: this model has layers 0 to {depth - 1}")
    return {layer % depth for layer in wanted}


def is_linear(module: nn.Module) -> bool:
    """Whether `module` maps its last dimension by a weight: nn.Linear and its subclasses, Conv1D, or a PEFT layer around one."""
    return isinstance(module, nn.Linear | Conv1D) or isinstance(getattr(module, "base_layer", None), nn.Linear | Conv1D)


def output_width(module: nn.Module) -> int:
    """Width of a linear's output."""
    linear: Any = getattr(module, "base_layer", module)
    return int(linear.nf if isinstance(linear, Conv1D) else linear.out_features)


def linears_of(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The linears inside `module` with their paths; what lies inside a linear (a PEFT layer's own matrices) is left out."""
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if is_linear(child):
            yield path, child
        else:
            yield from linears_of(child, path)


def _preset_sites(model: PreTrainedModel, preset: str, stack: str | None) -> Iterator[Site]:
    name, blocks = _the_stack(model, stack)
    if preset == "block-output":
        paths = [f"{name}.{layer}" for layer in range(len(blocks))]
        widths = _output_widths(model, paths)
        yield from (Site(path, widths[path], layer, "block-output") for layer, path in enumerate(paths))
        return
    if preset == "attention-qk":
        yield from _query_key_sites(model, name, blocks)
        return
    for layer, block in enumerate(blocks):
        for kind, module in _linears_for(preset, block):
            yield Site(f"{name}.{layer}.{kind}", output_width(module), layer, kind)


def _linears_for(preset: str, block: nn.Module) -> list[tuple[str, nn.Module]]:
    linears = list(linears_of(block))
    if preset == "all-linear":
        return linears
    if preset == "attention":
        return [pair for pair in linears if _in_attention(pair[0])]
    feed_forward = [pair for pair in linears if not _in_attention(pair[0])]
    return feed_forward[:-1] if preset == "fc1" else feed_forward


def _in_attention(kind: str) -> bool:
    return re.search("att(entio)?n", kind, re.IGNORECASE) is not None


def _the_stack(model: PreTrainedModel, stack: str | None) -> tuple[str, nn.ModuleList]:
    stacks = block_stacks(model)
    if stack is not None:
        if stack not in stacks:
            raise InputError(f"'{stack}' is not a block stack of {type(model).__name__}; it has {', '.join(stacks) or 'none'}")
        return stack, stacks[stack]
    if not stacks:
        raise InputError(
            f"{type(model).__name__} has no list of blocks as long as its number of layers: "
            "name modules by a pattern instead of a preset"
        )
    if len(stacks) > 1:
        raise InputError(f"{type(model).__name__} has several block stacks, {' and '.join(stacks)}: choose one with stack=...")
    return next(iter(stacks.items()))


def _pattern_sites(model: PreTrainedModel, pattern: str) -> Iterator[Site]:
    modules = {
        name: module for name, module in model.named_modules() if name and not isinstance(module, nn.ModuleList | nn.ModuleDict)
    }
    try:
        expression = re.compile(rf"(?:.*\.)?(?:{pattern})")
    except re.error as error:
        raise InputError(f"'{pattern}' is neither a preset ({', '.join(PRESETS)}) nor a regular expression ({error})") from None
    paths = [name for name in modules if expression.fullmatch(name)]
    if not paths:
        names = sorted({part for name in modules for part in (name, name.rpartition(".")[2])})
        near = difflib.get_close_matches(pattern, [*PRESETS, *names], n=3, cutoff=0.4)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise InputError(f"no module of {type(model).__name__} matches '{pattern}'{hint}")
    others = [path for path in paths if not is_linear(modules[path])]
    widths = _output_widths(model, others) if others else {}
    stacks = block_stacks(model)
    for path in paths:
        width = widths[path] if path in widths else output_width(modules[path])
        yield Site(path, width, *place(path, stacks))


def place(path: str, stacks: Iterable[str]) -> tuple[int | None, str]:
    """Layer and kind of the module at `path`, given the paths of the block stacks."""
    for stack in stacks:
        if path.startswith(stack + "."):
            layer, _, kind = path[len(stack) + 1 :].partition(".")
            return int(layer), kind or "block-output"
    return None, path


def _query_key_sites(model: PreTrainedModel, stack: str, blocks: nn.ModuleList) -> Iterator[Site]:
    for layer, roles in enumerate(_attention_roles(model, blocks)):
        for kind, letters in roles.items():
            path = f"{stack}.{layer}.{kind}"
            if set(letters) in ({"q"}, {"k"}):
                yield Site(path, len(letters), layer, kind)
                continue
            for role in ("query", "key"):
                if role[0] in letters:
                    part = _part(letters, role[0], path)
                    width = len(letters) // part.period * (part.stop - part.start)
                    yield Site(f"{path}[{role}]", width, layer, f"{kind}[{role}]", part)


def _part(roles: str, letter: str, path: str) -> Part:
    """Where the dimensions of one role lie, from one letter per dimension ("qqkkvvqqkkvv" has period 6)."""
    period = next(p for p in range(1, len(roles) + 1) if len(roles) % p == 0 and roles[:p] * (len(roles) // p) == roles)
    start, stop = roles[:period].index(letter), roles[:period].rindex(letter) + 1
    if set(roles[start:stop]) != {letter}:
        raise InputError(f"'{path}' mixes query, key and value dimensions without a pattern: name the module itself instead")
    return Part(period, start, stop)


def _attention_roles(model: PreTrainedModel, blocks: nn.ModuleList) -> Iterator[dict[str, str]]:
    """For each block and each of its attention linears, one letter per output dimension: q, k, or v for all that carries content.

    With the same state at every position, whom attention looks at makes no difference: the gradient of the block's output
    vanishes at queries and keys, and only there. With different states, a key at the first position reaches the output of the
    last, a query does not. Asked of a copy of the block in fp64, along several random directions, so that "vanishes" is clear
    also where weights are trained and some dimensions weigh a million times as much as others.
    """
    generator = torch.Generator().manual_seed(0)
    for block, (args, kwargs) in zip(blocks, _block_calls(model, blocks), strict=True):
        probe = _probe(block)
        same = _gradients(probe, args, kwargs, lambda states: states[:, :1].expand_as(states))
        different = _gradients(probe, args, kwargs, lambda states: torch.randn(states.shape, generator=generator).to(states))
        largest = max((gradient.sum(0).max().item() for gradient in same.values()), default=0.0)
        roles: dict[str, str] = {}
        for kind, gradient in same.items():
            content = gradient.sum(0) > 1e-4 * largest
            reaches = different[kind][0] > 0
            letters = ("v" if c else "k" if r else "q" for c, r in zip(content.tolist(), reaches.tolist(), strict=True))
            roles[kind] = "".join(letters)
        yield roles


def _block_calls(model: PreTrainedModel, blocks: nn.ModuleList) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What every block is called with in one forward pass on dummy inputs, without its cache."""
    calls: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[module] = _without_cache(args), _without_cache(kwargs)

    hooks: Hooks = [(block.register_forward_pre_hook, before, {"with_kwargs": True}) for block in blocks]
    with _hooked(hooks), torch.no_grad(), _evaluating(model):
        model(**_dummy_inputs(model))
    return [calls[block] for block in blocks]


def _without_cache(value: Any) -> Any:
    """Arguments with every key-value cache taken out and every floating tensor in fp64."""
    if isinstance(value, tuple | list):
        return type(value)(map(_without_cache, value))
    if isinstance(value, dict):
        return {key: _without_cache(each) for key, each in value.items()}
    if isinstance(value, Cache):
        return None
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _probe(block: nn.Module) -> nn.Module:
    """A copy of a block in fp64 and evaluation mode, without anybody's hooks."""
    probe = copy.deepcopy(block).double().eval().requires_grad_(False)
    for module in probe.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return probe


def _gradients(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], replace_states: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Summed |gradient| of random projections of the block's last output position at its attention linears: `(positions, width)`.

    The block is given `replace_states(states)` for all hidden states that reach it.
    """
    captured: dict[str, Tensor] = {}

    def replaced(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point():
            return replace_states(value).clone().requires_grad_()
        return value

    def keep(kind: str) -> Callable[..., None]:
        return lambda module, args, output: captured.update({kind: output})

    linears = [(kind, module) for kind, module in linears_of(block) if _in_attention(kind)]
    with _hooked([(module.register_forward_hook, keep(kind), {}) for kind, module in linears]), torch.enable_grad():
        output = block(*map(replaced, args), **{key: replaced(value) for key, value in kwargs.items()})
        output = output[0] if isinstance(output, tuple) else output
        weights = torch.randn(4, output.shape[-1], generator=torch.Generator().manual_seed(1)).to(output)
        total = {kind: torch.zeros_like(each[0]) for kind, each in captured.items()}
        for projection in (output[:, -1] @ weights.T).sum(0) if captured else ():
            found = torch.autograd.grad(projection, list(captured.values()), retain_graph=True, materialize_grads=True)
            for kind, gradient in zip(captured, found, strict=True):
                total[kind] += gradient.abs().sum(0)
    return {kind: each.detach() for kind, each in total.items()}


def _output_widths(model: PreTrainedModel, paths: list[str]) -> dict[str, int]:
    """Width of the output of the modules at `paths`, from one forward pass on dummy inputs."""
    widths: dict[str, int] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            if isinstance(output, Tensor) and output.ndim >= 2:
                widths[path] = output.shape[-1]

        return hook

    hooks: Hooks = [(model.get_submodule(path).register_forward_hook, note(path), {}) for path in paths]
    with _hooked(hooks), torch.no_grad(), _evaluating(model):
        model(**_dummy_inputs(model))
    for path in paths:
        if path not in widths:
            raise InputError(f"'{path}' gives no hidden states (its output is not a tensor, or it is not called)")
    return widths


def _dummy_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    config = model.config
    if model.main_input_name == "pixel_values":
        size = config.image_size if isinstance(config.image_size, Sequence) else (config.image_size, config.image_size)
        return {"pixel_values": torch.zeros(1, config.num_channels, *size, device=model.device, dtype=model.dtype)}
    ids = torch.arange(1, 5, device=model.device).remainder(config.get_text_config().vocab_size).unsqueeze(0)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    return inputs


@contextmanager
def _hooked(hooks: Hooks) -> Iterator[None]:
    """Hooks registered for a while; they come off also after an error."""
    handles = [register(hook, **options) for register, hook, options in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode for a while."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
