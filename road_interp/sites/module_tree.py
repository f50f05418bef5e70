"""The module tree of a model: block stacks, linear layers and the widths of outputs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from road_interp.arguments import check_argument
from road_interp.errors import InputError, first_line

FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, AssertionError)  # of a model's own code
Hooks = list[tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]]  # register function, hook, its keyword arguments


def check_transformers_model(function: str, model: object, make: str) -> None:
    """Raise InputError unless `model` is a module with the config of transformers' models. Arguments as in `check_argument`."""
    check_argument(function, model, nn.Module, make)
    if not hasattr(model, "config"):
        raise InputError(f"{function} needs a transformers model, and {type(model).__name__} has no config: give {make}")


def layer_stacks(model: PreTrainedModel) -> dict[str, nn.ModuleList]:
    """The outermost module lists of `model` whose length is a number of layers in its configuration, by path.

    Lists of blocks of one class, if there are any; hybrid models have blocks of several.
    """
    config = model.config
    lengths = {
        getattr(section, key, None)
        for section in (config, text_config(model), *vars(config).values())
        for key in ("num_hidden_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
    }
    lists = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) in lengths
    }
    uniform = {name: blocks for name, blocks in lists.items() if len(set(map(type, blocks))) == 1}
    chosen = uniform or lists
    return {name: each for name, each in chosen.items() if not any(name.startswith(f"{outer}.") for outer in chosen)}


def text_config(model: PreTrainedModel) -> Any:
    """The section of the configuration about texts; the whole one where there is no such section, or where there are several."""
    try:
        return model.config.get_text_config()
    except ValueError:
        return model.config


def hidden_of(output: Any) -> Any:
    """The hidden states in a module's output: the output itself, or its first element if it is a tuple."""
    return output[0] if isinstance(output, tuple) else output


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """A module's output with its hidden states replaced by `hidden`."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@cache
def code_of(kind: type) -> str:
    """The source of a class and of those it inherits from, up to nn.Module, where there are files of it."""
    sources = []
    for each in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        try:
            sources.append(inspect.getsource(each))
        except (OSError, TypeError):  # made without a file
            continue
    return "\n".join(sources)


@cache
def reads_weight(kind: type, name: str) -> bool:
    """Whether the code of a class reads the weight of its layer `name`, for more than its dtype or shape, or to initialise it."""
    code = re.sub(r"(isinstance|init\.\w+)\(self\.\w+\.weight", "", code_of(kind))
    return re.search(rf"self\.{re.escape(name)}\.weight(?!\.(dtype|device|shape|data|requires_grad)\b)", code) is not None


def read_weights(model: nn.Module, paths: Iterable[str]) -> dict[str, type]:
    """The linear layers among `paths` whose weights the code around them reads, with the class that does."""
    around: dict[str, type] = {path: type(model.get_submodule(path.rpartition(".")[0])) for path in paths}
    return {path: kind for path, kind in around.items() if reads_weight(kind, path.rpartition(".")[2])}


def never_called(model: PreTrainedModel, paths: Iterable[str]) -> list[str]:
    """The linear layers among `paths` whose weights the model reads instead of calling them, so that nothing would rotate.

    torch's MultiheadAttention and WavLM's attention read those of all their layers, Mamba's mixers that of `dt_proj`, others some
    of them on a certain device only. Where the code around a layer reads its weight, one forward pass on dummy inputs decides;
    where that cannot be run, whether the code calls the layer as well. The pass is in evaluation mode: what kernels of Mamba read
    in training on CUDA is seen by `read_weights_watched`.
    """
    around = read_weights(model, paths)
    if not around:
        return []
    called: set[str] = set()

    def record(path: str) -> Callable[..., None]:
        return lambda module, args: called.add(path)

    hooks: Hooks = [(model.get_submodule(path).register_forward_pre_hook, record(path), {}) for path in around]
    try:
        with hooked(hooks):
            run_on_dummy(model)
    except InputError:
        called = {path for path in around if f"self.{path.rpartition('.')[2]}(" in code_of(around[path])}
    return [path for path in around if path not in called]


def is_linear(module: nn.Module) -> bool:
    """Whether `module` is a linear layer: nn.Linear or a subclass, Conv1D, or a PEFT layer that wraps one of these."""
    return isinstance(module, nn.Linear | Conv1D) or isinstance(getattr(module, "base_layer", None), nn.Linear | Conv1D)


def output_width(module: nn.Module) -> int:
    """Width of the output of a linear layer."""
    linear: Any = getattr(module, "base_layer", module)
    return int(linear.nf if isinstance(linear, Conv1D) else linear.out_features)


def has_forward_of_its_own(module: nn.Module) -> bool:
    """Whether a linear layer is of a subclass that may return another width, or more than the product with its weight."""
    return isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward


def linear_widths(model: PreTrainedModel, linears: Mapping[str, nn.Module]) -> dict[str, int]:
    """Width of the output of linear layers, by path; without those that return several tensors, as routers do.

    Subclasses with a forward of their own may return other outputs than the layer's: one forward pass on dummy inputs shows
    what they return, if the model can run it.
    """
    widths = {path: output_width(module) for path, module in linears.items()}
    returned: dict[str, Any] = {}

    def record(path: str) -> Callable[..., None]:
        return lambda module, args, output: returned.update({path: output})

    own = {path: module for path, module in linears.items() if has_forward_of_its_own(module)}
    if own:
        with suppress(InputError), hooked([(module.register_forward_hook, record(path), {}) for path, module in own.items()]):
            run_on_dummy(model)
    several = {path for path, output in returned.items() if isinstance(output, tuple)}
    widths |= {path: output.shape[-1] for path, output in returned.items() if path not in several}
    return {path: width for path, width in widths.items() if path not in several}


def linears_of(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The linears inside `module` with their paths. Linears inside a linear (the matrices of a PEFT layer) are left out."""
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if is_linear(child):
            yield path, child
        else:
            yield from linears_of(child, path)


def is_in_attention(block: nn.Module, kind: str) -> bool:
    """Whether the path of a linear inside a block contains "attn" or "attention", or it is directly in a module of that class."""
    around = type(_around(block, kind)).__name__
    return re.search("att(entio)?n", kind, re.IGNORECASE) is not None or re.search(r"Attention\d*$", around) is not None


def mixes_tokens(block: nn.Module, kind: str) -> bool:
    """Whether a linear of a block is of its attention, or of a mixer with a convolution over the tokens, as Mamba's."""
    around = _around(block, kind)
    convolves = around is not block and any(isinstance(child, nn.Conv1d) for child in around.children())
    return convolves or is_in_attention(block, kind)


def experts_in_tensors(block: nn.Module) -> str | None:
    """The path of the experts inside a block whose weights are one tensor for all, and no linear layers; None without any."""
    for path, module in block.named_modules():
        if "Experts" in type(module).__name__ and any(weight.ndim == 3 for weight in module.parameters(recurse=False)):
            return path
    return None


def other_linear(block: nn.Module) -> str | None:
    """The path of a layer in a block that is linear by its attributes and not torch's, as of a quantisation; None without one."""
    inside = tuple(f"{path}." for path, _ in linears_of(block))
    for path, module in block.named_modules():
        sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
        if all(isinstance(size, int) for size in sizes) and not is_linear(module) and not path.startswith(inside):
            return path
    return None


def _around(block: nn.Module, kind: str) -> nn.Module:
    """The module around a linear of a block, which may be the block."""
    return block.get_submodule(kind.rpartition(".")[0])


def layer_and_kind(path: str, stacks: Iterable[str]) -> tuple[int | None, str]:
    """Layer and kind of the module at `path`, given the paths of the block stacks; the layer is None outside of them."""
    for stack in stacks:
        if found := re.fullmatch(rf"{re.escape(stack)}\.(\d{{1,6}})(?:\.(.*))?", path, re.DOTALL):
            return int(found[1]), found[2] or "block-output"
    return None, path


def check_has_states(path: str, module: nn.Module) -> None:
    """Raise InputError for a convolution, whose channels are not the last axis, and for rotary position embeddings."""
    if re.search("Rotary.*Embedding", type(module).__name__):
        raise InputError(f"'{path}' returns cosines and sines of positions, which are no states: choose another module")
    if isinstance(module, _ConvNd):
        raise InputError(f"'{path}' is a convolution, whose output has no axis of states at its end: choose another module")


def refuse_never_called(model: PreTrainedModel, paths: Iterable[str]) -> None:
    """Raise InputError for a linear layer of `never_called`."""
    for path in never_called(model, paths):
        reader = type(model.get_submodule(path.rpartition(".")[0])).__name__
        raise InputError(f"'{path}' is never called: {reader} reads its weight instead, so that nothing would rotate")


def refuse_shared(model: PreTrainedModel, paths: Iterable[str]) -> None:
    """Raise InputError for a module that stands at several paths, as in repeated blocks: a rotation would act at all of them."""
    modules = {id(model.get_submodule(path)): path for path in paths}
    for path, module in model.named_modules(remove_duplicate=False):
        if (site := modules.get(id(module), path)) != path:
            if "_orig_mod" in path:
                raise InputError(f"'{path}' is in a part that torch.compile wraps: compile it with `part.compile()` instead")
            raise InputError(
                f"'{site}' is the same module as '{path}': a rotation would act at both. Give each place a module of its own, "
                "such as copy.deepcopy(module)"
            )


def output_widths(model: PreTrainedModel, paths: list[str]) -> dict[str, int]:
    """Width of the output of the modules at `paths`, from one forward pass on dummy inputs.

    Raises InputError for a module that is not called or returns no hidden states, for one that returns several states by name, as
    Reformer's blocks do, and for a module of `check_has_states`.
    """
    for path in paths:
        check_has_states(path, model.get_submodule(path))
    widths: dict[str, int] = {}
    named: dict[str, tuple[str, ...]] = {}

    def record(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if fields := getattr(output, "_fields", ()):
                named[path] = fields
            output = hidden_of(output)
            if isinstance(output, Tensor) and output.ndim >= 2:
                widths[path] = output.shape[-1]

        return hook

    hooks: Hooks = [(model.get_submodule(path).register_forward_hook, record(path), {}) for path in paths]
    with hooked(hooks):
        run_on_dummy(model)
    for path, fields in named.items():
        raise InputError(f"'{path}' returns several states by name, {', '.join(fields)}: select linear layers instead")
    for path in paths:
        if path not in widths:
            raise InputError(f"'{path}' returns no hidden states (its output is not a tensor, or the module is not called)")
    return widths


@torch.no_grad()
def run_on_dummy(model: PreTrainedModel) -> None:
    """One forward pass on a minimal batch: four tokens, one blank image, or one silent waveform.

    Raises InputError for a model that takes something else.
    """
    try:
        with evaluating(model):
            model(**_dummy_inputs(model))
    except torch.OutOfMemoryError:
        raise
    except FAILURES as error:
        raise InputError(
            f"{type(model).__name__} cannot be run on four tokens, one image or one waveform, as these sites need "
            f"({first_line(error)}): select linear layers, as 'all-linear' does"
        ) from error


def _dummy_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    config = model.config
    if model.main_input_name == "input_values":
        return {"input_values": torch.zeros(1, 4000, device=model.device, dtype=model.dtype)}
    if model.main_input_name == "pixel_values":
        size = config.image_size if isinstance(config.image_size, Sequence) else (config.image_size, config.image_size)
        return {"pixel_values": torch.zeros(1, config.num_channels, *size, device=model.device, dtype=model.dtype)}
    ids = torch.arange(1, 5, device=model.device).remainder(text_config(model).vocab_size).unsqueeze(0)
    inputs = {"input_ids": ids}
    if model.device.type != "meta":  # transformers reads the values of a mask
        inputs["attention_mask"] = torch.ones_like(ids)
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    return inputs


@contextmanager
def hooked(hooks: Hooks) -> Iterator[None]:
    """Register hooks for the duration of the `with` statement; they are removed also after an error."""
    handles = [register(hook, **options) for register, hook, options in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode for the duration of the `with` statement; every module then gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients of the weights for the duration of the `with` statement; all is then as before."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with evaluating(model):
        model.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)
