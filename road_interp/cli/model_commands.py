"""Commands for base models: models, serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from road_interp.cli.options import Device, app, console, quiet_libraries
from road_interp.errors import InputError
from road_interp.progress import progress_bar
from road_interp.sources import LARGER, MODELS, larger_models_folder


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
        is_there = (larger_models_folder() / LARGER[name]).exists()
        if model.terms is not None and not accept_gemma and not is_there:
            console.print(terms_of(model), highlight=False)
            not_accepted.append(name)
            continue
        with progress_bar() as progress:
            folder = download_larger_model(model, progress)
        console.print(f"{MODELS}{name}  {folder}  ({model.licence})", soft_wrap=True, highlight=False)
    if not_accepted:
        raise InputError(f"{not_accepted[0]} needs consent to the terms above: ACCEPT_GEMMA=1 make models, or --accept-gemma")


@app.command()
def serve(
    base: Annotated[str, typer.Argument(help="a causal language model: hub id, folder, .gguf file, package:// or models://")],
    *,
    adapters: Annotated[Path, typer.Option(help="a folder of adapter folders, run folders or PEFT folders")],
    host: Annotated[str, typer.Option(help="address to listen at; the default is this machine only")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    watch: Annotated[bool, typer.Option("--watch", help="read the adapters again when their folder changes")] = False,
    max_requests: Annotated[int, typer.Option(min=1, help="requests in one pass; more of them wait")] = 32,
    max_length: Annotated[int, typer.Option(min=2, help="tokens of a request, prompt and answer")] = 1024,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="tokens of an answer, where the request does not say")] = 256,
    device: Device = None,
    dtype: Annotated[str, typer.Option(help="of the base model: float32, bfloat16, float16, auto")] = "auto",
) -> None:
    """Serve adapters through an OpenAI-compatible API: the model of a request is road:NAME or road:a@0.5+b."""
    quiet_libraries()
    from road_interp.from_mapping import from_mapping
    from road_interp.recipes.schema import ModelRecipe
    from road_interp.serving.run_server import ServerSettings
    from road_interp.serving.run_server import serve as run

    settings = ServerSettings(host, port, watch, max_requests, max_length, max_new_tokens)
    with progress_bar() as progress:
        run(from_mapping(ModelRecipe, {"id": base, "dtype": dtype}), adapters, settings, device, progress)
