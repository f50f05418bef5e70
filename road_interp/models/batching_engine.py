"""transformers' engine for continuous batching, with the settings that rotations need, and those that it does not follow."""

from __future__ import annotations

import copy
import math
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from road_interp.arguments import check_argument
from road_interp.errors import InputError, first_line

# Blocks of the cache are shared by prompts with equal beginnings, whose states differ between adapters; and what is captured in a
# CUDA graph, or prepared while the last pass still runs, does not look up the requests of its pass.
ENGINE = {"allow_block_sharing": False, "use_cuda_graph": False, "use_async_batching": False}
# Settings of `generate` that the engine does not follow, or fails on, with the values that ask for nothing besides None.
ONLY_IN_GENERATE: dict[str, Any] = {
    "num_return_sequences": 1,
    "num_beams": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "repetition_penalty": 1,
    "encoder_repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "guidance_scale": 1,
    "penalty_alpha": 0,
    "token_healing": False,
    "max_time": None,
    "stop_strings": None,
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "dola_layers": None,
    "watermarking_config": None,
}
MOST_BLOCKS = 1024  # of a cache that is made for the sizes of its requests
MOST_TOKENS = 2048  # per pass of such an engine


def check_settings(config: GenerationConfig) -> None:
    """Raise InputError for a setting of the generation that would change the tokens in `generate`, and not in the engine."""
    for name, neutral in ONLY_IN_GENERATE.items():
        if (value := getattr(config, name, None)) not in (None, neutral):
            instead = "add a request several times" if name == "num_return_sequences" else f"use generate, or {name}={neutral}"
            if neutral is None:
                instead = f"use generate, or {name}=None, also in the generation_config of the base model"
            raise InputError(f"continuous batching does not follow {name}={value!r}: {instead}")
    bias = config.sequence_bias or {}
    if any(len(tokens) > 1 for tokens in (bias if isinstance(bias, dict) else [each[0] for each in bias])):
        raise InputError("continuous batching does not follow a sequence_bias of several tokens: use generate, or one token each")


def turn_off_unfollowed(config: GenerationConfig) -> None:
    """Set what the engine does not follow to values that ask for nothing."""
    for name, neutral in ONLY_IN_GENERATE.items():
        setattr(config, name, neutral)


def make_engine(
    model: PreTrainedModel, generation_config: GenerationConfig, engine_config: Any, sizes: tuple[int, int, int] | None
) -> Any:
    """transformers' manager of continuous batching, not yet started; its arguments are those of `ContinuousBatching`.

    Raises:
        InputError: layers that transformers' engine does not have, as those of Mamba.
    """
    from transformers import ContinuousBatchingConfig
    from transformers.generation.continuous_batching.utils import WorkloadHints

    if engine_config is not None:
        check_argument("engine_config", engine_config, ContinuousBatchingConfig, "transformers.ContinuousBatchingConfig()")
    settings = ContinuousBatchingConfig() if engine_config is None else copy.copy(engine_config)
    for name, value in ENGINE.items():
        setattr(settings, name, value)
    config = copy.deepcopy(generation_config)  # the engine writes into it
    hints = None
    if sizes is not None:
        longest, new_tokens, count = sizes
        hints = WorkloadHints(*sizes)
        if engine_config is None:  # by default the cache fills the memory, and a mask of that length is cleared in every pass
            blocks = count * (math.ceil((longest + new_tokens) / settings.page_size) + 1)
            settings.num_blocks = blocks if blocks <= MOST_BLOCKS else None
            settings.max_batch_tokens = max(count, min(MOST_TOKENS, count * longest))
    of_engine: Any = model
    if hasattr(model, "destroy_cached_continuous_batching_manager"):
        of_engine.destroy_cached_continuous_batching_manager()  # one that was kept has settings of its own
    try:
        return of_engine.init_continuous_batching(config, settings, hints)
    except ValueError as error:
        raise InputError(f"continuous batching cannot run {type(model).__name__} ({first_line(error)}): use generate") from error
