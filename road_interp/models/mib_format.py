"""The files of a featurizer for the causal-variable track of MIB (Mueller et al. 2025), as its own loader reads them.

The track knows featurizers by the names of its classes. An interchange in a subspace is a `SubspaceFeaturizerModule`, whose
rotation matrix is an orthogonal parametrisation of pyvene's LowRankRotateLayer, and a list of the features that are swapped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pyvene.models.layers import LowRankRotateLayer
from torch import Tensor
from torch.nn.utils import parametrizations

from road_interp.arguments import check_argument
from road_interp.errors import InputError
from road_interp.files import check_writable
from road_interp.models.orthonormal import is_orthonormal
from road_interp.models.seeding import seeded


def save_mib(
    basis: Float[Tensor, "width k"], folder: str | os.PathLike[str], unit: str, features: Sequence[int] | None = None
) -> None:
    """Write `UNIT_featurizer`, `UNIT_inverse_featurizer` and `UNIT_indices` into a folder.

    Args:
        basis: orthonormal columns, the directions of the features.
        folder: of one task, model and variable, created if it is missing.
        unit: the name of the model unit, as the track's experiments give it.
        features: the swapped features; None for all.

    Raises:
        InputError: columns that are not orthonormal, no features or some that do not exist, a unit that is no part of a
            file name, a folder that cannot be written, or files that exist already.
    """
    check_argument("save_mib", folder, (str, os.PathLike), "the path of a folder")
    if not isinstance(unit, str) or not unit or Path(unit).name != unit:
        raise InputError(f"the unit begins the names of three files, so that it must be a text without '/', not {unit!r}")
    width, count = basis.shape
    if not is_orthonormal(basis):
        raise InputError("the columns of the basis are not orthonormal: MIB's loader would orthogonalise them")
    swapped = list(range(count)) if features is None else list(dict.fromkeys(features))
    if not swapped:
        raise InputError("no feature is swapped: name one at least, or leave subspaces out for all")
    if unknown := sorted(set(swapped) - set(range(count))):
        raise InputError(f"the features {unknown} do not exist: there are {count}")
    folder = Path(folder)
    check_writable(folder)
    paths = [folder / f"{unit}_{kind}" for kind in ("featurizer", "inverse_featurizer", "indices")]
    if existing := [path for path in paths if path.exists()]:
        raise InputError(f"'{existing[0]}' exists already")
    with seeded(0):  # the parametrisation draws numbers
        layer: Any = LowRankRotateLayer(width, count, init_orth=False)
        layer.weight.data.copy_(basis.detach().cpu())
        layer = parametrizations.orthogonal(layer)
    saved = {
        "model_info": {
            "featurizer_class": "SubspaceFeaturizerModule",
            "inverse_featurizer_class": "SubspaceInverseFeaturizerModule",
            "n_features": count,
            "additional_config": {"rotation_matrix": layer.weight.detach().clone(), "requires_grad": False},
        },
        "state_dict": {f"rotate.{name}": values for name, values in layer.state_dict().items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(saved, paths[0])
    torch.save(saved, paths[1])
    paths[2].write_text(json.dumps(None if features is None else swapped))
