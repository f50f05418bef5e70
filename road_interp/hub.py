"""Runs on the Hugging Face Hub: a run folder with a model card that says what was rotated, how far, and how to load it."""

from __future__ import annotations

import re
import shutil
import tempfile
from importlib import resources
from pathlib import Path

import huggingface_hub
import numpy as np
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from jinja2 import Environment

from road_interp import figures, measure, plots
from road_interp.errors import InputError
from road_interp.recipe import MixtureRecipe
from road_interp.report import scores_of
from road_interp.run import CHECKPOINTS, FIGURES, HEAD, Run

CARD = "README.md"
REFUSALS = (HTTPError, HFValidationError, OSError)  # of the Hub, and of a network that does not reach it


def push_to_hub(run: Run, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a run folder with a model card and the figure of its angles; the address of the commit.

    Args:
        repo_id: "user/name"; the repository is made if there is none.
        private: whether a new repository is.
        token: of the Hub; by default that of `hf auth login`.

    Raises:
        InputError: a name that the Hub does not take, or a Hub that refuses.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns(CHECKPOINTS, FIGURES))
        (folder / CARD).write_text(model_card(run, repo_id), encoding="utf-8")
        drawn = figures.save_figure(plots.angles(report := measure.angles(run.adapter)), report, Path(temporary), "angles")
        shutil.copy(drawn, folder)
        try:
            api = huggingface_hub.HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                delete_patterns="*",  # whatever another run left there
                commit_message="A RoAd rotation by road-interp",
            )
        except REFUSALS as error:
            raise InputError(f"'{repo_id}': the Hub does not take it ({_reason(error)})") from None
    return str(commit.commit_url)


def from_hub(repo_id: str, revision: str | None = None, token: str | None = None, trust_remote_code: bool = False) -> Run:
    """A run that `push_to_hub` uploaded, from the Hub's cache on this machine.

    Args:
        trust_remote_code: whether its recipe may run code that comes with the base model.

    Raises:
        InputError: no such repository, one that holds no run, or a run that wants to run code without your leave.
    """
    try:
        folder = huggingface_hub.snapshot_download(repo_id, revision=revision, token=token)
    except REFUSALS as error:
        raise InputError(f"'{repo_id}' cannot be had from the Hub ({_reason(error)})") from None
    cache = Path(folder).resolve().parents[1]  # files of a snapshot are links into it
    for path in sorted(Path(folder).rglob("*")):
        if not path.resolve().is_relative_to(cache):
            raise InputError(f"'{repo_id}': '{path.relative_to(folder)}' leads out of the repository")
    try:
        run = Run.load(folder)
    except InputError as error:
        raise InputError(f"'{repo_id}' is not a run of road-interp: {error}") from None
    if run.recipe.model.trust_remote_code and not trust_remote_code:
        what = f"'{repo_id}' runs code that comes with '{run.recipe.model.id}'"
        raise InputError(f"{what}: read it, then pass trust_remote_code=True")
    return run


def _reason(error: Exception) -> str:
    """What the Hub said, on one line."""
    said = error.server_message if isinstance(error, HfHubHTTPError) else None
    return " ".join((said or str(error)).split()) or type(error).__name__


def model_card(run: Run, repo_id: str) -> str:
    """The repository's README: YAML for the Hub, then what was rotated, how far, the scores, and how to load it."""
    report = measure.angles(run.adapter)
    kinds = []
    for kind in report.kinds:
        sites = [site for site in report.sites if site.kind == kind]
        angles = np.degrees(np.abs(np.concatenate([site.angle for site in sites])))
        magnitude = np.concatenate([site.magnitude for site in sites]).mean()
        layers = ", ".join(str(site.layer) for site in sites if site.layer is not None) or "-"
        kinds.append([kind, layers, f"{angles.mean():.1f}", f"{angles.max():.0f}", f"{magnitude:.3f}"])
    recipe = run.recipe
    hub_id = recipe.model.id if re.fullmatch(r"[\w.-]+/[\w.-]+", recipe.model.id) and not Path(recipe.model.id).exists() else None
    data = huggingface_hub.ModelCardData(
        library_name="road-interp", tags=["road", "pyvene", "interpretability", run.adapter.variant], base_model=hub_id
    )
    template = resources.files("road_interp").joinpath("card.md.jinja").read_text("utf-8")
    text = (
        Environment(trim_blocks=True)
        .from_string(template)
        .render(
            title=repo_id.rpartition("/")[2],
            model=hub_id or recipe.model.name,
            sites=len(report.sites),
            planes=f"{sum(len(site.angle) for site in report.sites):,}",
            parameters=f"{run.adapter.num_parameters:,}",
            variant=report.variant,
            group_size=report.group_size,
            positions=recipe.adapter.positions,
            tasks=list(recipe.tasks) if isinstance(recipe, MixtureRecipe) else [],
            kinds=kinds,
            scores=scores_of(run.metrics),
            head=(run.folder / HEAD).is_file(),
            repo_id=repo_id,
        )
    )
    return f"---\n{data.to_yaml()}\n---\n{text}\n"
