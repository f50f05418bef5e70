"""MIB's causal-variable track loads what `save_mib` writes, and swaps the same features."""

from __future__ import annotations

import ast

import pytest
import torch
from pyvene.models.layers import LowRankRotateLayer
from torch import nn
from torch.nn.utils import parametrizations

from road_interp.errors import InputError
from road_interp.models.interchange import RoadInterchangeIntervention
from road_interp.models.variable_coordinates import VariableCoordinates
from road_interp.rotation import butterfly

WIDTH, UNIT = 32, "ResidualStream(Layer-3,Token-last)"
COORDINATES = VariableCoordinates({"country": 3, "continent": 5})
MAKERS = {
    "planes": lambda: COORDINATES.road(WIDTH, spread=1.0),
    "stack": lambda: COORDINATES.road(WIDTH, depth=butterfly.full_depth(WIDTH), spread=1.0),
    "low rank": lambda: COORDINATES.low_rank(WIDTH),
}


class Rotation(nn.Module):
    """The track's module: an orthogonal layer called `rotate`."""

    def __init__(self, matrix):
        super().__init__()
        self.rotate = LowRankRotateLayer(*matrix.shape, init_orth=False)
        self.rotate.weight.data.copy_(matrix)
        self.rotate = parametrizations.orthogonal(self.rotate)


def load(folder):
    """As the track loads a featurizer and the indices of its features: by class names, shapes and a strict state dict."""
    modules = {}
    for kind, name in (("featurizer", "SubspaceFeaturizerModule"), ("inverse_featurizer", "SubspaceInverseFeaturizerModule")):
        saved = torch.load(folder / f"{UNIT}_{kind}", weights_only=True)
        info = saved["model_info"]
        assert info[f"{kind}_class"] == name
        matrix = info["additional_config"]["rotation_matrix"]
        modules[kind] = Rotation(matrix)
        modules[kind].load_state_dict(saved["state_dict"])
        assert modules[kind].rotate.weight.shape == matrix.shape == (WIDTH, info["n_features"])
        assert info["additional_config"]["requires_grad"] in (True, False)
    text = (folder / f"{UNIT}_indices").read_text()
    assert len(text.splitlines()) == 1
    return modules, None if text == "null" else ast.literal_eval(text)


def swap(modules, indices, base, source):
    """Features of base and source, those of `indices` exchanged, and back with the base's reconstruction error."""
    matrix, inverse = (modules[kind].rotate.weight for kind in ("featurizer", "inverse_featurizer"))
    features, others = base @ matrix, source @ matrix
    error = base - features @ matrix.T
    chosen = list(range(matrix.shape[1])) if indices is None else indices
    features[:, chosen] = others[:, chosen]
    return features @ inverse.T + error


@torch.no_grad()
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("variable", [None, "country", "continent"])
def test_the_track_swaps_as_the_interchange(kind, variable, tmp_path):
    interchange = MAKERS[kind]()
    base, source = torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(0))
    chosen = None if variable is None else COORDINATES.subspaces([variable])[0]
    interchange.save_mib(tmp_path / "task_model_variable", UNIT, chosen)
    modules, indices = load(tmp_path / "task_model_variable")
    expected = interchange(base, source, subspaces=None if chosen is None else [chosen] * 6)
    torch.testing.assert_close(swap(modules, indices, base, source), expected, rtol=0, atol=1e-5)
    assert indices == (None if variable is None else {"country": [0, 1, 2], "continent": [3, 4, 5, 6, 7]}[variable])


def test_files_that_exist_and_masks_that_are_soft(tmp_path):
    interchange = MAKERS["planes"]()
    interchange.save_mib(tmp_path, UNIT)
    with pytest.raises(InputError, match=r"_featurizer' exists already"):
        interchange.save_mib(tmp_path, UNIT)
    with pytest.raises(InputError, match="subspace 2 does not exist"):
        interchange.save_mib(tmp_path, "other", [2])
    with pytest.raises(InputError, match="no feature is swapped"):
        interchange.save_mib(tmp_path, "other", [])
    with pytest.raises(InputError, match="needs str or PathLike, not NoneType"):
        interchange.save_mib(None, "other")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file, not a folder"):
        interchange.save_mib(tmp_path / "file", "other")
    (tmp_path / "file").unlink()
    with pytest.raises(InputError, match="call harden"):
        RoadInterchangeIntervention(WIDTH, rows="mask").save_mib(tmp_path, "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{UNIT}_{kind}" for kind in ("featurizer", "indices", "inverse_featurizer")
    ]


def test_the_random_numbers_of_the_gpus_are_left_alone(tmp_path, monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    MAKERS["planes"]().save_mib(tmp_path, UNIT)
    assert not seeded
