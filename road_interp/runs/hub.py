"""The Hugging Face Hub: upload and download of folders, and the model card of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from jinja2 import Environment

from road_interp import measure
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.errors import InputError
from road_interp.files import exists
from road_interp.plots.html_report import scores_of
from road_interp.recipes.schema import TrainableRecipe

CARD = "README.md"
REFUSALS = (HTTPError, HFValidationError, OSError)  # errors of the Hub, and of the network


def upload(folder: Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Replace the content of a repository by that of a folder, and return the URL of the commit.

    Raises:
        InputError: a name or an upload that the Hub rejects, or no network.
    """
    try:
        api = huggingface_hub.HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            delete_patterns="*",  # files of an earlier upload
            commit_message="A RoAd rotation by road-interp",
        )
    except REFUSALS as error:
        raise InputError(f"'{repo_id}' cannot be uploaded to the Hub ({_reason(error)})") from None
    return str(commit.commit_url)


def download(repo_id: str, revision: str | None = None, token: str | None = None) -> Path:
    """Download a repository, and return its folder in the local cache of the Hub.

    Raises:
        InputError: no such repository, or one with links to files outside it.
    """
    try:
        folder = Path(huggingface_hub.snapshot_download(repo_id, revision=revision, token=token))
    except REFUSALS as error:
        raise InputError(f"'{repo_id}' cannot be downloaded from the Hub ({_reason(error)})") from None
    cache = folder.resolve().parents[1]  # the files of a snapshot are links into the cache
    for path in sorted(folder.rglob("*")):
        if not path.resolve().is_relative_to(cache):
            raise InputError(f"'{repo_id}': '{path.relative_to(folder)}' is a link to a file outside the repository")
    return folder


def _reason(error: Exception) -> str:
    """The message of the Hub, on one line."""
    message = error.server_message if isinstance(error, HfHubHTTPError) else None
    return " ".join((message or str(error)).split()) or type(error).__name__


def model_card(adapter: RoadAdapter, recipe: TrainableRecipe, metrics: Mapping[str, Any], repo_id: str, head: bool) -> str:
    """The model card (README.md): metadata in YAML, the rotated modules with their angles, the scores, and how to load the run.

    Args:
        adapter, recipe, metrics: those of the run.
        repo_id: "user/name" on the Hub.
        head: whether the run has a trained head.
    """
    report = measure.angles(adapter)
    kinds = []
    for kind in report.kinds:
        sites = [site for site in report.sites if site.kind == kind]
        angles = np.degrees(np.abs(np.concatenate([site.angle for site in sites])))
        magnitude = np.concatenate([site.magnitude for site in sites]).mean()
        layers = ", ".join(str(site.layer) for site in sites if site.layer is not None) or "-"
        kinds.append([kind, layers, f"{angles.mean():.1f}", f"{angles.max():.0f}", f"{magnitude:.3f}"])
    hub_id = recipe.model.id if re.fullmatch(r"[\w.-]+/[\w.-]+", recipe.model.id) and not exists(recipe.model.id) else None
    data = huggingface_hub.ModelCardData(
        library_name="road-interp", tags=["road", "pyvene", "interpretability", adapter.variant], base_model=hub_id
    )
    template = resources.files("road_interp.runs").joinpath("card.md.jinja").read_text("utf-8")
    text = (
        Environment(trim_blocks=True)
        .from_string(template)
        .render(
            title=repo_id.rpartition("/")[2],
            model=hub_id or recipe.model.name,
            sites=len(report.sites),
            planes=f"{sum(len(site.angle) for site in report.sites):,}",
            parameters=f"{adapter.num_parameters:,}",
            variant=report.variant,
            group_size=report.group_size,
            positions=recipe.adapter.positions,
            tasks=recipe.task_names,
            kinds=kinds,
            scores=scores_of(metrics),
            head=head,
            repo_id=repo_id,
        )
    )
    return f"---\n{data.to_yaml()}\n---\n{text}\n"
