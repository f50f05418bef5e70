"""Sites where an adapter per row does not work, because the first axis of their outputs is not that of the rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from road_interp.errors import InputError
from road_interp.models.model_families import TOKENS_FIRST, model_types
from road_interp.sites.module_tree import text_config
from road_interp.sites.site import Site

MEDIA = re.compile("pixel|vision|visual|image|video|audio|speech|input_features|input_values")  # in names of inputs and modules
PLACEHOLDER = re.compile("(image|video|audio)_token_(id|index)")  # in a configuration
OF_OTHER_STATES = re.compile(r"(cross_?att\w*|encoder_attn)\.(.*[._])?(key|value|k_proj|v_proj|c_attn)$")  # modules of a decoder
IN_EXPERTS = (
    "site '{}' is inside the experts of a mixture, which mix the tokens of all rows: only one adapter for all rows, in calls of "
    "forward and generate, works there"
)


def why_rows_are_refused(
    model: PreTrainedModel, sites: Sequence[Site], what: str = "an adapter, task or strength per row"
) -> str | None:
    """Why rows cannot have rotations or tokens of their own, whatever the inputs are; None if they can."""
    if has_tokens_first(model):
        return tokens_first(model, what)
    if (inside := site_in_experts(model, sites)) is not None:
        return IN_EXPERTS.format(inside)
    for site in sites:
        if projects_distances(model, site):
            return (
                f"site '{site.name}': its module computes embeddings of distances, too, which belong to no row; only one "
                "adapter, task or strength for all rows works there"
            )
    return None


def has_tokens_first(model: PreTrainedModel) -> bool:
    """Whether a model computes with tokens on the first axis of its states, and rows on the second."""
    return not TOKENS_FIRST.isdisjoint(model_types(model))


def tokens_first(model: PreTrainedModel, what: str) -> str:
    """The message for what such a model does not take."""
    return (
        f"{what}: {type(model).__name__} computes with tokens on the first axis, so that rows cannot be told from tokens; only "
        "one adapter for all rows, with positions='all', works there"
    )


def projects_distances(model: PreTrainedModel, site: Site) -> bool:
    """Whether a module is called on the states and on embeddings of relative positions (DeBERTa-v3)."""
    config: Any = model.config
    projects = getattr(config, "share_att_key", False) and config.relative_attention
    return projects and site.kind.endswith(("query_proj", "key_proj"))


def site_in_experts(model: nn.Module, sites: Sequence[Site]) -> str | None:
    """A site inside the experts of a mixture, whose tokens are of all rows in an order of their own; None if there is none."""
    experts = tuple(f"{name}." for name, module in model.named_modules() if type(module).__name__.endswith("Experts"))
    inside = (site.name for site in sites if "experts" in site.module.split(".") or f"{site.module}.".startswith(experts))
    return next(inside, None)


def site_outside_text(model: PreTrainedModel, sites: Sequence[Site]) -> str | None:
    """A site outside the text model of a model with several, and outside its heads; None if there is none."""
    text = text_config(model)
    if text is model.config:  # without a section of its own
        return next((site.name for site in sites if MEDIA.search(site.module)), None)
    inside = tuple(
        f"{name}."
        for name, module in model.named_modules()
        if name and isinstance(module, PreTrainedModel) and type(module.config) is type(text)
    )
    return next((site.name for site in sites if "." in site.module and not f"{site.module}.".startswith(inside)), None)


def check_dense_head(model: PreTrainedModel, sites: Sequence[Site], inputs: Mapping[str, Any]) -> None:
    """Raise InputError for a site in a head that reads the tokens with a label only, whose rows are not those of the batch."""
    if not getattr(model.config, "sparse_prediction", False) or inputs.get("labels") is None:
        return
    for site in sites:
        if not site.module.startswith(f"{model.base_model_prefix}."):
            raise InputError(
                f"site '{site.name}': with sparse_prediction the head reads the tokens with a label only, of all rows together; "
                "only one adapter for all rows works there"
            )


def check_media(model: PreTrainedModel, outside_text: str | None, inputs: Mapping[str, Any]) -> None:
    """Raise InputError where rows of texts have adapters of their own at a site outside the text model, and media beside them."""
    if outside_text is not None and rows_differ(model, inputs):
        raise InputError(
            f"site '{outside_text}' is outside the text model: a row may have several images, or none, so that an adapter, task "
            "or strength per row works at sites of the text model only"
        )


def check_own_tokens(outside_text: str | None, inputs: Mapping[str, Any]) -> None:
    """Raise InputError where positions are those of texts, and a site outside the text model computes media beside them."""
    if outside_text is not None and _texts_of(inputs) is not None and _media_of(inputs):
        raise InputError(
            f"site '{outside_text}' is outside the text model, and its tokens are not those of the text, which positions name: "
            "only positions='all' works there"
        )


def _texts_of(inputs: Mapping[str, Any]) -> Any:
    return next((inputs[name] for name in ("input_ids", "inputs_embeds") if inputs.get(name) is not None), None)


def _media_of(inputs: Mapping[str, Any]) -> list[Any]:
    return [
        value
        for name, value in inputs.items()
        if MEDIA.search(name) and (isinstance(value, list) or (isinstance(value, Tensor) and value.is_floating_point()))
    ]


def rows_differ(model: PreTrainedModel, inputs: Mapping[str, Any]) -> bool:
    """Whether a pass has texts and media that may not have the same rows: placeholders stand for the media among the tokens of
    the texts, or the numbers differ."""
    texts, media = _texts_of(inputs), _media_of(inputs)
    if texts is None or not media:
        return False
    has_placeholders = any(PLACEHOLDER.fullmatch(name) and value is not None for name, value in vars(model.config).items())
    return has_placeholders or any(len(each) != len(texts) for each in media)
