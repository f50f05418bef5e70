"""Read pyvene folders of interventions as adapters, and write them."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.adapters.storage import adapter_folder, holds_adapter, read_signature
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.errors import InputError, one_line
from road_interp.files import is_file, parse_json, read_json_object, read_text, write_atomically
from road_interp.models.intervention import RoadIntervention, pyvene, read_form, subspace_planes
from road_interp.rotation import plane_maps
from road_interp.sites.find import find_sites, in_module_order
from road_interp.sites.module_tree import frozen, layer_and_kind, layer_stacks
from road_interp.sites.site import OutputSlice, Site
from road_interp.sources import local_folder

CONFIG = "config.json"
TASKS = "tasks.json"  # names of the subspaces, which pyvene's config cannot hold
POSITIONS = "positions.json"  # the rotated tokens, which are arguments of pyvene's calls, and what else an adapter records
# The second is the type of version 0.1.0.
TYPES = (
    "<class 'road_interp.RoadIntervention'>",
    "<class 'road_interp.intervention.RoadIntervention'>",
)


def read_interventions(folder: str | os.PathLike[str], base: PreTrainedModel) -> tuple[RoadAdapter, TaskPlanes | None]:
    """The rotations in a folder that `RoadModel.save` or pyvene's `save` wrote, and its tasks.

    A folder with subspaces has one task per subspace, with the names in tasks.json, or "0", "1" and so on without that file. The
    positions of the adapter are those of positions.json, or "all" without that file.

    Args:
        base: the base model of the interventions; it is not changed.

    Raises:
        InputError: the folder does not exist, contains interventions other than RoadIntervention, names components that the model
            does not have, or has subspaces that are not disjoint sets of planes.
    """
    folder = local_folder(folder)
    if not is_file(folder / CONFIG) and holds_adapter(adapter_folder(folder)):
        raise InputError(f"'{folder}' is not a pyvene folder: RoadModel(base, '{folder}') takes adapters and runs")
    config = read_json_object(folder / CONFIG)
    if not isinstance(config.get("representations"), list) or not isinstance(config.get("intervention_types"), list):
        raise InputError(f"'{folder}': {CONFIG} is not a pyvene config")
    if other := [kind for kind in config["intervention_types"] if kind not in TYPES]:
        raise InputError(f"'{folder}' contains an intervention of type {other[0]}, not RoadIntervention")
    sites, theta, alpha, forms, owners = [], {}, {}, set(), {}
    stacks, query_keys = tuple(layer_stacks(base)), cache(partial(find_sites, base, "attention-qk"))
    for key, module, partition in _components(folder, config["representations"], base):
        state = _read_state(folder / f"intkey_{key}.bin")
        variant, group_size, output_slice = read_form(state["form"])
        site = _site(stacks, module, variant, state["theta"], output_slice, query_keys)
        sites.append(site)
        theta[site.name], alpha[site.name] = state["theta"].float(), state["alpha"].float()
        owners[site.name] = _owners(folder, state, partition, site.width, group_size)
        forms.add((variant, group_size))
    if not forms:
        raise InputError(f"'{folder}' contains no intervention")
    if len(forms) > 1:
        raise InputError(f"'{folder}' contains several variants or group sizes, {sorted(forms)}; an adapter has one of each")
    adapter = RoadAdapter(in_module_order(sites, base), theta, alpha, *forms.pop(), **_recorded(folder))
    return adapter, _task_planes(folder, adapter, owners)


def write_interventions(model: pyvene.IntervenableModel, folder: str | os.PathLike[str]) -> None:
    """Write the interventions of a RoadModel: see `RoadModel.save`."""
    if model.bank is not None:
        raise InputError("a bank holds several adapters: save one model per adapter")
    if not isinstance(model.positions, str):
        raise InputError("positions given as lists are tokens of one batch: save a model whose positions are text, such as 'all'")
    if (Path(folder) / CONFIG).exists():
        raise InputError(f"'{folder}' already contains a {CONFIG}; choose another folder")
    Path(folder).mkdir(parents=True, exist_ok=True)
    # Before pyvene's files, so that an interrupted save leaves no folder that loads with other tokens or tasks.
    if model.planes is not None:
        write_atomically(Path(folder) / TASKS, json.dumps(list(model.planes.tasks)) + "\n")
    adapter = model.adapter
    recorded = {"positions": model.positions, "base": asdict(adapter.base), "modules_to_save": adapter.modules_to_save}
    write_atomically(Path(folder) / POSITIONS, json.dumps(recorded) + "\n")
    config = model.config
    pairs = zip(config.representations, model.interventions.values(), strict=True)
    model.config = pyvene.IntervenableConfig(
        [entry._replace(latent_dim=int(each.embed_dim), subspace_partition=each.subspace_partition) for entry, each in pairs]
    )
    try:
        with redirect_stdout(io.StringIO()):  # pyvene prints that the folder exists
            pyvene.IntervenableModel.save(model, str(folder))
    finally:
        model.config = config


def _recorded(folder: Path) -> dict[str, Any]:
    """The positions that `RoadModel.save` wrote, the base model's signature and the sha256 of other trained weights.

    In a folder of pyvene's own these are "all" and unknown.
    """
    path = folder / POSITIONS
    if not path.is_file():
        return {"positions": "all"}
    content = read_json_object(path)
    positions, others = content.get("positions"), content.get("modules_to_save")
    if not isinstance(positions, str):
        raise InputError(f"'{path}': 'positions' must be text such as \"last\"")
    if not isinstance(others, str | None):
        raise InputError(f"'{path}': 'modules_to_save' must be a sha256 or null")
    base = read_signature(content.get("base"), f"'{path}': base")
    return {"positions": positions, "base": base, "modules_to_save": others}


def _owners(folder: Path, state: Mapping[str, Tensor], partition: Any, width: int, group_size: int) -> Tensor | None:
    """The planes of every subspace of a site, `(subspaces, planes)`: those of its state or of pyvene's config, if any."""
    if "subspace_planes" in state:
        return state["subspace_planes"]
    return None if partition is None else subspace_planes(_dimensions(folder, partition, width), width, group_size)


def _task_planes(folder: Path, adapter: RoadAdapter, owners: Mapping[str, Tensor | None]) -> TaskPlanes | None:
    """One task per subspace, from the planes of the subspaces by site name; None if no site has subspaces."""
    found = {site: planes for site, planes in owners.items() if planes is not None}
    if not found:
        return None
    counts = set(map(len, found.values()))
    if len(counts) > 1 or len(found) < len(owners):
        raise InputError(f"'{folder}': its sites have different numbers of subspaces, so that they are not those of tasks")
    names = [str(index) for index in range(*counts)]
    if (folder / TASKS).is_file():
        names = _read_json(folder / TASKS)
        if not isinstance(names, list) or len(names) not in counts or not all(isinstance(name, str) for name in names):
            raise InputError(f"'{folder / TASKS}' must list the names of {next(iter(counts))} tasks")
    owned = {name: {site: planes[index] for site, planes in found.items()} for index, name in enumerate(names)}
    return TaskPlanes(adapter.sites, owned)


def _read_json(path: Path) -> Any:
    """The content of a JSON file; None where it is not JSON."""
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError:
        return None


def _dimensions(folder: Path, partition: Any, width: int) -> list[list[int]]:
    """A partition of pyvene's config as lists of dimensions: two numbers are a range. Raises InputError for anything else."""
    lists = partition if isinstance(partition, list) and all(isinstance(each, list) for each in partition) else [[None]]
    if not all(type(number) is int and 0 <= number <= width for each in lists for number in each):
        raise InputError(f"'{folder}': a subspace_partition of {CONFIG} must be lists of dimensions of {width}")
    return [list(range(*each)) if len(each) == 2 else each for each in lists]


def _components(folder: Path, representations: list[Any], base: PreTrainedModel) -> Iterator[tuple[str, str, Any]]:
    """The key of every intervention, the path of the module whose output it rotates, as resolved by pyvene, and its subspaces."""
    paths = {module: name for name, module in base.named_modules()}
    try:
        entries = [pyvene.RepresentationConfig(*entry) for entry in representations]
        partitions = [entry.subspace_partition for entry in entries]
        entries = [entry._replace(intervention=RoadIntervention(2), subspace_partition=None) for entry in entries]
        with frozen(base):  # pyvene freezes the model, too
            model = pyvene.IntervenableModel(pyvene.IntervenableConfig(entries), base)
    except Exception as error:  # pyvene raises many types
        raise InputError(f"'{folder}' names a component that {type(base).__name__} does not have ({error})") from None
    for (key, hook), partition in zip(model.intervention_hooks.items(), partitions, strict=True):
        if hook.__name__ != "register_forward_hook":
            raise InputError(f"'{folder}': '{key}' rotates a module's input; an adapter rotates outputs only")
        yield key, paths[hook.__self__], partition


def _read_state(path: Path) -> dict[str, Tensor]:
    """theta, alpha and form of one intervention. Only tensors are unpickled."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except Exception as error:  # damaged pickles raise many types
        raise InputError(f"{path} cannot be read as tensors ({one_line(error)})") from None
    tensors = isinstance(state, dict) and all(isinstance(values, Tensor) for values in state.values())
    if not tensors or not {"theta", "alpha", "form"} <= set(state) or state.get("subspace_planes", state["form"]).ndim < 1:
        raise InputError(f"{path} is not the state of a RoadIntervention")
    return state


def _site(
    stacks: Sequence[str],
    module: str,
    variant: plane_maps.Variant,
    theta: Tensor,
    output_slice: OutputSlice | None,
    query_keys: Callable[[], Sequence[Site]],
) -> Site:
    """The site of a module's output or of a slice of it, named as in `find_sites` where `find_sites` has it.

    Args:
        stacks: paths of the model's block stacks.
        query_keys: returns the sites of queries and keys, which are slow to find.
    """
    width = 2 * theta.numel() // plane_maps.num_parameters(2, variant)
    if output_slice is None:
        return Site(module, width, *layer_and_kind(module, stacks))
    for site in query_keys():
        if (site.module, site.output_slice) == (module, output_slice):
            return site
    return Site(
        f"{module}[{output_slice.start}:{output_slice.stop} of {output_slice.period}]",
        width,
        *layer_and_kind(module, stacks),
        output_slice,
    )
