"""Find the sites of a model by inspecting the model itself, without a table of architectures.

The block stack is the module list whose length is the number of layers in the configuration. Widths come from the linears
themselves or from one forward pass on dummy inputs. Gradients distinguish queries and keys from values (`attention_roles`).
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from road_interp.arguments import check_argument, is_whole
from road_interp.errors import InputError
from road_interp.sites.attention_roles import attention_roles, slice_of_role
from road_interp.sites.module_tree import (
    check_transformers_model,
    experts_in_tensors,
    is_in_attention,
    is_linear,
    layer_and_kind,
    layer_stacks,
    linear_widths,
    linears_of,
    mixes_tokens,
    never_called,
    other_linear,
    output_width,
    output_widths,
    refuse_never_called,
    text_config,
)
from road_interp.sites.site import Site

PRESETS = ("all-linear", "attention-qk", "attention", "mlp", "fc1", "block-output")
Layers = int | str | Iterable[int] | None
TargetModules = str | Site | Sequence[str | Site]


def find_sites(
    model: PreTrainedModel, target_modules: TargetModules, layers: Layers = None, stack: str | None = None
) -> tuple[Site, ...]:
    """The sites of `model` selected by `target_modules`, in the order of the model's modules.

    Args:
        model: any Hugging Face model.
        target_modules: a preset; or a regular expression that matches a module's full path or its last components, such as
            "query" or "h[.]0[.]attn[.]c_attn"; or a list of presets, regular expressions and sites. The presets select modules
            inside the blocks only, without embeddings and heads:

            - "all-linear": the output of every linear layer,
            - "attention-qk": queries and keys, also where one linear computes queries, keys and values; not of linear attention,
            - "attention", "mlp": the linears of the attention and of the feed-forward network; mixers as Mamba's are in neither,
            - "fc1": the linears of every feed-forward network except its last (gate and up projection in a gated one),
            - "block-output": the output of each block, which is the residual stream.
        layers: block indices, counted from 0 or, if negative, from the end; an int, a list, a range, or text such as "10-29",
            which includes both ends, or "0,2,-1".
        stack: path of the block stack, for models that have two (encoder and decoder): modules in the other one are left out.

    Raises:
        InputError: something that is no model, no module matches, the model has two stacks and `stack` is None, a width is odd,
            or a layer does not exist.
    """
    check_transformers_model("find_sites", model, "a model, such as load_model('gpt2')[0]")
    if not isinstance(target_modules, Iterable | Site):
        presets = ", ".join(PRESETS)
        raise InputError(f"find_sites needs target_modules, not {target_modules!r}: give {presets}, or a regular expression")
    if stack is not None:
        check_argument("find_sites", stack, str, "the path of a block stack, such as 'encoder.block'")
        _select_stack(model, stack)
    entries = [target_modules] if isinstance(target_modules, str | Site) else list(target_modules)
    layers = [*layers] if isinstance(layers, Iterator) else layers
    found: dict[str, Site] = {}
    for entry in entries:
        check_argument("find_sites", entry, (str, Site), "presets, regular expressions or sites")
        if isinstance(entry, Site):
            selected: Iterable[Site] = [entry]
        elif entry in PRESETS:
            selected = tuple(_preset_sites(model, entry, layers, stack))
        else:
            selected = _pattern_sites(model, entry, stack)
        found |= {site.name: site for site in selected}
    others = _other_stacks(model, stack)
    sites = [site for site in found.values() if not site.module.startswith(others)]
    if layers is not None:
        sites = _in_layers(sites, layers, layer_stacks(model), stack)
    sliced = {site.module for site in sites if site.output_slice is not None}
    if both := [site.module for site in sites if site.output_slice is None and site.module in sliced]:
        raise InputError(f"'{both[0]}' and a slice of it are both sites, and would be rotated twice: choose one of them")
    if not sites:
        where = f"{'' if layers is None else f' in layers {layers!r}'}{'' if stack is None else f' of {stack}'}"
        raise InputError(f"no site of {type(model).__name__} matches {target_modules!r}{where}")
    return in_module_order(sites, model)


def _in_layers(sites: list[Site], layers: Layers, stacks: dict[str, nn.ModuleList], stack: str | None) -> list[Site]:
    """The sites in some layers. Raises InputError for one that does not exist, or is counted from the ends of unequal stacks."""
    layer_of = {site.name: layer_and_kind(site.module, stacks)[0] if site.layer is None else site.layer for site in sites}
    paths = [path for path in stacks if any(site.module.startswith(f"{path}.") for site in sites)]
    paths = [stack] if stack is not None else [*stacks] if len(stacks) == 1 else paths
    deepest = max((layer for layer in layer_of.values() if layer is not None), default=-1)
    depth = max((len(stacks[path]) for path in paths), default=1 + deepest)
    if not depth:
        raise InputError("layers cannot be counted: the model has no list of blocks as long as its number of layers")
    wanted = parse_layers(layers, depth)
    counts_from_end = parse_layers(layers, depth + 1) != wanted
    if counts_from_end and len({len(stacks[path]) for path in paths}) > 1:
        raise InputError(
            f"layers {layers!r} are counted from the end, which {' and '.join(paths)} have at different layers: choose one with "
            "stack=..."
        )
    return [site for site in sites if layer_of[site.name] in wanted]


def in_module_order(sites: Iterable[Site], model: nn.Module) -> tuple[Site, ...]:
    """Sites in the order of their modules in the model, and of their slices; those of modules that it lacks come last."""
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    return tuple(
        sorted(sites, key=lambda site: (order.get(site.module, len(order)), site.output_slice.start if site.output_slice else 0))
    )


def parse_layers(layers: Layers, depth: int) -> set[int]:
    """Layer indices from an int, an iterable of ints, or text ("3", "10-29" including both ends, "0,2,-1")."""
    if isinstance(layers, str):
        wanted: list[int] = []
        for text in layers.split(","):
            match = re.fullmatch(r"\s*(?:(-?\d+)|(\d+)\s*-\s*(\d+))\s*", text)
            if not match:
                raise InputError(f"layers '{layers}': '{text}' is neither a number nor a range such as 10-29")
            if match[1]:
                wanted.append(int(match[1]))
                continue
            first, last = int(match[2]), int(match[3])
            if last < first:
                raise InputError(f"layers '{layers}': the range '{text}' ends before it begins")
            wanted += range(first, last + 1) if last < depth else [last]  # which does not exist
    else:
        array: Any = layers
        given = array.tolist() if hasattr(layers, "tolist") else layers
        wanted = list(given) if isinstance(given, Iterable) else [] if given is None else [given]
    for layer in wanted:
        if not is_whole(layer) or not -depth <= layer < depth:
            raise InputError(f"layer {layer!r} does not exist: this model has layers 0 to {depth - 1}")
    return {int(layer) % depth for layer in wanted}


def _preset_sites(model: PreTrainedModel, preset: str, layers: Layers, stack: str | None) -> Iterator[Site]:
    name, blocks = _select_stack(model, stack)
    if preset == "block-output":
        paths = [f"{name}.{layer}" for layer in range(len(blocks))]
        widths = output_widths(model, paths)
        yield from (Site(path, widths[path], layer, "block-output") for layer, path in enumerate(paths))
        return
    if preset == "attention-qk":
        chosen = range(len(blocks)) if layers is None else sorted(parse_layers(layers, len(blocks)))
        yield from _query_key_sites(model, name, {layer: blocks[layer] for layer in chosen})
        return
    linears = {
        f"{name}.{layer}.{kind}": module for layer, block in enumerate(blocks) for kind, module in _linears_for(preset, block)
    }
    _warn_of_left_out(name, blocks, preset)
    without = never_called(model, linears)
    if linears and len(without) == len(linears):
        raise InputError(f"{type(model).__name__} calls no linear layer of '{preset}': it reads their weights instead")
    widths = linear_widths(model, linears)
    if gates := [path for path, width in widths.items() if width == 1]:
        warnings.warn(f"'{preset}' leaves out '{gates[0]}' and its like: one number has no plane", stacklevel=3)
    left_out = {*without, *gates}
    yield from (Site(path, widths[path], *layer_and_kind(path, [name])) for path in widths if path not in left_out)


def _warn_of_left_out(name: str, blocks: nn.ModuleList, preset: str) -> None:
    """Warn of the first experts whose weights are tensors, and of the first layer of a kind that is not nn.Linear."""
    for layer, block in enumerate(blocks):
        if preset != "attention" and (path := experts_in_tensors(block)) is not None:
            warnings.warn(
                f"'{preset}' leaves out the experts in '{name}.{layer}.{path}', whose weights are one tensor, not linear layers",
                stacklevel=4,
            )
            break
    for layer, block in enumerate(blocks):
        if (path := other_linear(block)) is not None:
            kind = type(block.get_submodule(path))
            warnings.warn(
                f"'{preset}' leaves out '{name}.{layer}.{path}' and its like, which are {kind.__module__}.{kind.__name__}, no "
                f"linear layers of torch; a pattern such as '{path.rpartition('.')[2]}' selects them",
                stacklevel=4,
            )
            break


def _linears_for(preset: str, block: nn.Module) -> list[tuple[str, nn.Module]]:
    linears = list(linears_of(block))
    if preset == "all-linear":
        return linears
    if preset == "attention":
        return [(kind, module) for kind, module in linears if is_in_attention(block, kind)]
    feed_forward = [(kind, module) for kind, module in linears if not mixes_tokens(block, kind)]
    if preset == "mlp":
        return feed_forward
    found = {kind: module for kind, module in feed_forward if output_width(module) > 1}  # a gate of experts may come last
    last = _last_of_networks(found)
    return [(kind, module) for kind, module in found.items() if kind not in last]


def _last_of_networks(kinds: Iterable[str]) -> set[str]:
    """The last linear of every feed-forward network of a block, such as of each expert, by their paths.

    A network is the innermost module with several linears that are in none of its networks. What is left over, such as a router,
    counts as one.
    """
    left, last = list(kinds), set()
    for depth in reversed(range(1 + max((kind.count(".") for kind in left), default=0))):
        networks: dict[tuple[str, ...], list[str]] = {}
        for kind in left:
            *around, _ = kind.split(".")
            if len(around) >= depth:
                networks.setdefault(tuple(around[:depth]), []).append(kind)
        for network in networks.values():
            if len(network) > 1 or depth == 0:
                last.add(network[-1])
                left = [kind for kind in left if kind not in network]
    return last


def _select_stack(model: PreTrainedModel, stack: str | None) -> tuple[str, nn.ModuleList]:
    stacks = layer_stacks(model)
    if stack is not None:
        if stack not in stacks:
            raise InputError(f"'{stack}' is not a block stack of {type(model).__name__}; it has {', '.join(stacks) or 'none'}")
        return stack, stacks[stack]
    if not stacks:
        raise InputError(
            f"{type(model).__name__} has no list of blocks as long as its number of layers: give the transformers model, such as "
            "model.model of a RoadModel, or select modules by a pattern instead of a preset"
        )
    if len(stacks) > 1:
        raise InputError(f"{type(model).__name__} has several block stacks, {' and '.join(stacks)}: choose one with stack=...")
    return next(iter(stacks.items()))


def _other_stacks(model: PreTrainedModel, stack: str | None) -> tuple[str, ...]:
    """What the paths of modules in other block stacks begin with; nothing if no stack is chosen."""
    return () if stack is None else tuple(f"{name}." for name in layer_stacks(model) if name != _select_stack(model, stack)[0])


def _pattern_sites(model: PreTrainedModel, pattern: str, stack: str | None) -> Iterator[Site]:
    stacks, others = layer_stacks(model), _other_stacks(model, stack)
    modules = {
        name: module
        for name, module in model.named_modules()
        if name and not isinstance(module, nn.ModuleList | nn.ModuleDict) and not name.startswith(others)
    }
    try:
        expression = re.compile(rf"(?:.*\.)?(?:{pattern})")
    except re.error as error:
        raise InputError(f"'{pattern}' is neither a preset ({', '.join(PRESETS)}) nor a regular expression ({error})") from None
    paths = [name for name in modules if expression.fullmatch(name)]
    if not paths:
        names = sorted({text for name in modules for text in (name, name.rpartition(".")[2])})
        similar = difflib.get_close_matches(pattern, [*PRESETS, *names], n=3, cutoff=0.4)
        hint = f"; similar names are {', '.join(similar)}" if similar else ""
        inside = "" if stack is None else f" in {stack}"
        raise InputError(f"no module of {type(model).__name__} matches '{pattern}'{inside}{hint}")
    refuse_never_called(model, paths)
    not_linear = [path for path in paths if not is_linear(modules[path])]
    widths = output_widths(model, not_linear) if not_linear else {}
    widths |= linear_widths(model, {path: modules[path] for path in paths if is_linear(modules[path])})
    for path in paths:
        width = widths[path] if path in widths else output_width(modules[path])
        yield Site(path, width, *layer_and_kind(path, stacks))


def _query_key_sites(model: PreTrainedModel, stack: str, blocks: dict[int, nn.Module]) -> Iterator[Site]:
    """The queries and keys of blocks, by their layer. Linear attention, which has no attention weights, has no sites."""
    types = dict(enumerate(getattr(text_config(model), "layer_types", None) or ()))
    blocks = {layer: block for layer, block in blocks.items() if types.get(layer) != "linear_attention"}
    one_sided: list[str] = []
    for layer, roles in zip(blocks, attention_roles(model, [*blocks.values()]), strict=True):
        beside = _beside_each_other(roles)
        if len(found := {"q", "k"} & {*"".join(beside.values())}) == 1:
            one_sided.append(f"only the {'queries' if found == {'q'} else 'keys'} of '{stack}.{layer}'")
        for kind, letters in beside.items():
            path = f"{stack}.{layer}.{kind}"
            if set(letters) in ({"q"}, {"k"}):
                yield Site(path, len(letters), layer, kind)
                continue
            for role in ("query", "key"):
                if role[0] in letters:
                    output_slice = slice_of_role(letters, role[0], path)
                    yield Site(f"{path}[{role}]", output_slice.width_in(len(letters)), layer, f"{kind}[{role}]", output_slice)
    if one_sided:
        warnings.warn(f"'attention-qk' finds {one_sided[0]}: no linear layer computes the others alone", stacklevel=4)


def _beside_each_other(roles: dict[str, str]) -> dict[str, str]:
    """The linears of modules that have queries and keys, if a block has such modules.

    MobileBERT's bottleneck, the input of both, acts on the attention weights only, as they do.
    """
    found: dict[str, set[str]] = {}
    for kind, letters in roles.items():
        found.setdefault(kind.rpartition(".")[0], set()).update(letters)
    whole = {module for module, letters in found.items() if {"q", "k"} <= letters}
    return {kind: letters for kind, letters in roles.items() if not whole or kind.rpartition(".")[0] in whole}
