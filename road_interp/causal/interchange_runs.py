"""Runs of counterfactual pairs with an interchange intervention at one site.

In an interchange intervention the model reads the base text, and a component of one hidden state is replaced by that of the
source text. If the component carries the variable in which the texts differ, the model gives the source's answer (distributed
alignment search, Geiger et al. 2024; CausalGym, Arora et al. 2024).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from road_interp.arguments import check_argument, check_count
from road_interp.causal.arguments import check_language_model, check_numbers, check_reads_source, check_vocabulary
from road_interp.causal.counterfactuals import CounterfactualPairs
from road_interp.causal.resumed_model import ResumedModel
from road_interp.causal.stored_keys import StoredKeys, states_of, supports_stored_keys
from road_interp.errors import InputError, first_line
from road_interp.models.merging import merged_rotations
from road_interp.models.open_contexts import OpenContext, shared_context
from road_interp.progress import Progress, silent
from road_interp.sites.module_tree import evaluating, hidden_of, with_hidden
from road_interp.sites.site import Site

# Maps the states of base and source at one token, `(batch, width)` each, to the state that replaces the base's.
Interchange = Callable[[Tensor, Tensor], Tensor]


def no_swap(base: Tensor, source: Tensor) -> Tensor:
    """Keep the state of the base."""
    return base


def full_swap(base: Tensor, source: Tensor) -> Tensor:
    """Replace the whole state by that of the source."""
    return source


def in_evaluation(interchange: Callable[..., Tensor]) -> AbstractContextManager[None]:
    """Evaluation mode for an interchange that is a module, with dropout or a mask that is soft in training only."""
    return evaluating(interchange) if isinstance(interchange, nn.Module) else nullcontext()


class TextRuns(NamedTuple):
    """Stored states of the different texts among the pairs, run without an interchange and padded on the right.

    Attributes:
        text: number of each pair's text.
        ids: token ids `(texts, longest)`.
        lengths: numbers of tokens `(texts,)`.
        entering: input of the block that contains the site, `(texts, longest, width)`.
        leaving: output of the site, `(texts, longest, width)`.
        odds: log odds of the base's answer against the source's after every pair's text `(pairs,)` (nats).
    """

    text: Int[Tensor, " pairs"]
    ids: Int[Tensor, "texts longest"]
    lengths: Int[Tensor, " texts"]
    entering: Float[Tensor, "texts longest width"]
    leaving: Float[Tensor, "texts longest width"]
    odds: Float[Tensor, " pairs"]


class InterchangeRuns:
    """Forward passes of the base texts in which an interchange replaces one hidden state.

    The computation before the intervened block and of the tokens before the exchanged one is the same in every run. The
    constructor runs all texts once and stores the input of that block, and the keys and values of every text; later runs start
    at that block and token. A model with rotations or hooks, or whose attention cannot read stored keys, is run from that block
    on with complete texts. The model is frozen and set to evaluation mode, and stays so. Before every evaluation and training it
    is asked about four of the texts again, whose answers show whether its weights, hooks or adapters have changed: by more than
    1e-3 in a logit, or .5 in half precision, where smaller changes may be rounding.

    Args:
        model: a causal language model; for a RoadModel the model of `with road_model.attached() as model`, inside that context.
        pairs: base and source texts.
        site: site whose output is exchanged, or the number of a block for that block's output.
        span: the exchange is at the last token of this span, in base and in source.
        batch_size: pairs per forward pass without gradient.
        progress: called before every such pass, of the constructor and of `odds`, with the number of finished texts or pairs.

    Attributes:
        base_label, source_label: first token of each answer, `(pairs,)`.
        base_odds: log odds of the base's answer against the source's without an interchange `(pairs,)` (nats).
        bases, sources: states at the span's last token, `(pairs, width)`.

    Raises:
        InputError: a RoadModel, or a model without a head over the vocabulary; an unknown span; a site outside the transformer
            blocks, or one of an output slice; texts of other tokens than the model's, or longer than it can read.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pairs: CounterfactualPairs,
        site: Site | int,
        span: str,
        batch_size: int = 64,
        progress: Progress = silent,
    ) -> None:
        check_language_model("causal.InterchangeRuns", model)
        check_argument("causal.InterchangeRuns", pairs, CounterfactualPairs, "encode_pairs(pairs, tokenizer)")
        check_argument("causal.InterchangeRuns", site, (int, Site), "the number of a block, or a site of find_sites")
        check_count("causal.InterchangeRuns", "batch_size", batch_size)
        if not len(pairs):
            raise InputError(f"{pairs.name}: there are no pairs")
        check_vocabulary(model, (*pairs.base_ids, *pairs.source_ids, pairs.label_tokens))
        self.model = model.eval().requires_grad_(False)
        self.pairs, self.batch_size, self._progress = pairs, batch_size, progress
        self._dtype = model.dtype
        pairs.span(span)  # raises for an unknown span before any forward pass
        self._resumed = ResumedModel(model, site)
        self.site, self._rotations = self._resumed.site, _rotations(model)
        self.base_label, self.source_label = self.tensor(pairs.base_label), self.tensor(pairs.source_label)
        self._source, _ = self._run("source texts", pairs.source_ids)
        stores = supports_stored_keys(model, max(pairs.base_ids, key=len))
        self._base, keys = self._run("base texts", pairs.base_ids, stores)
        self._first_logits = self._logits_of_first()
        self.base_odds: Float[Tensor, " pairs"] = self._base.odds
        check_numbers(self.base_odds.unsqueeze(1), "without an interchange the log odds")
        self._select_span(span)
        self._keys = None if keys is None else StoredKeys(keys, self._resumed.layer)
        if self._keys is None or not self._reproduces_base_odds():
            self._keys = None
            self._check_resumed()

    def at(self, span: str) -> InterchangeRuns:
        """The same runs with the exchange at another span; stored states are shared."""
        other = copy.copy(self)
        other._select_span(span)
        return other

    def relabelled(self, pairs: CounterfactualPairs) -> InterchangeRuns:
        """The same runs with the answers and spans of `pairs`; stored states are shared.

        Raises InputError for pairs of other texts, or without the span of these runs.
        """
        check_argument("InterchangeRuns.relabelled", pairs, CounterfactualPairs, "pairs of the same texts")
        check_vocabulary(self.model, (*pairs.base_ids, *pairs.source_ids, pairs.label_tokens))
        if (pairs.base_ids, pairs.source_ids) != (self.pairs.base_ids, self.pairs.source_ids):
            raise InputError(f"the texts of {pairs.name} are not those of these runs: make InterchangeRuns of them")
        other = copy.copy(self)
        other.pairs = pairs
        other._select_span(self.span)
        other.base_label, other.source_label = self.tensor(pairs.base_label), self.tensor(pairs.source_label)
        other.base_odds = -other.odds(no_swap)
        return other

    @property
    def starts_at_span(self) -> bool:
        """Whether runs compute only the tokens from the exchanged one on, with stored keys and values of those before."""
        return self._keys is not None

    def _select_span(self, span: str) -> None:
        self.span = span
        base, source = (self.tensor(ends) for ends in zip(*self.pairs.span(span), strict=True))
        self._position = base
        self.bases: Float[Tensor, "pairs width"] = self._base.leaving[self._base.text, base]
        self.sources: Float[Tensor, "pairs width"] = self._source.leaving[self._source.text, source]

    def __repr__(self) -> str:
        return f"InterchangeRuns({self.pairs!r} at {self.site.name}, span {self.span})"

    def logits(self, rows: Int[Tensor, " n"], interchange: Interchange) -> Float[Tensor, "n vocabulary"]:
        """Logits after the base texts of pairs `rows`, with the interchange. Gradients flow to its parameters.

        Raises InputError for an intervention that has no source, and where other rotations are attached to the model, or merged
        into it, than when the runs were made.
        """
        self._check_rotations()
        check_reads_source(interchange)
        texts, position = self._base.text[rows], self._position[rows]
        starts = torch.zeros_like(position) if self._keys is None else position

        def exchange(module: nn.Module, args: Any, output: Any) -> Any:
            states = hidden_of(output)
            token = torch.arange(len(rows), device=states.device), position - starts
            exchanged = states.clone()
            exchanged[token] = interchange(states[token], self.sources[rows]).to(states.dtype)
            return with_hidden(output, exchanged)

        return self._resumed_logits(texts, starts, exchange)

    def _resumed_logits(self, texts: Tensor, starts: Tensor, hook: Callable[..., Any] | None = None) -> Tensor:
        """Logits after base texts, computed from the site's block and the tokens `starts` on, with a hook on the site."""
        cache = None if self._keys is None else self._keys.before(texts, starts)
        _, ids, lengths, entering, *_ = self._base
        return self._resumed.resumed_logits(entering[texts], ids[texts], lengths[texts], starts, cache, hook)

    @torch.no_grad()
    def odds(self, interchange: Interchange) -> Float[Tensor, " pairs"]:
        """Log odds of the source's answer against the base's after every base text, with the interchange (nats).

        The interchange is in evaluation mode. Raises InputError for odds that are NaN or infinite.
        """
        with in_evaluation(interchange):
            odds = [-self._log_odds(self.logits(rows, interchange), rows) for rows in self.batches("interchanges")]
        check_numbers(torch.cat(odds).unsqueeze(1), "with this interchange the log odds")
        return torch.cat(odds)

    def _check_rotations(self) -> None:
        if not _rotations(self.model).are(self._rotations):
            raise InputError(
                "these runs were made with other rotations attached to the model, or merged into it, than it has now: "
                "make them again"
            )

    @torch.no_grad()
    def check_model(self) -> None:
        """Raise InputError if the model gives other answers without an interchange than when the runs were made."""
        self._check_rotations()
        if self.model.dtype != self._dtype:
            raise InputError(f"these runs are of a model in {self._dtype}, now it is in {self.model.dtype}: make them again")
        difference = (self._logits_of_first() - self._first_logits).abs().max()
        if not difference < self._tolerance:
            raise InputError(
                f"{type(self.model).__name__} gives other answers than when these runs were made: its weights, hooks, adapters "
                "or autocast have changed; make them again"
            )

    def tensor(self, values: Sequence[int]) -> Int[Tensor, " n"]:
        """Integers as a tensor on the model's device."""
        return torch.tensor(values, device=self.model.device)

    def batches(self, what: str) -> Iterator[Tensor]:
        """The rows of all pairs, a batch at a time; `what` is the name of the work in progress. Checks the model first."""
        self.check_model()
        for rows in torch.arange(len(self.pairs), device=self.model.device).split(self.batch_size):
            self._progress(what, int(rows[0]), len(self.pairs))
            yield rows

    @torch.no_grad()
    def _run(self, what: str, texts: Sequence[Sequence[int]], stores: bool = False) -> tuple[TextRuns, Tensor | None]:
        """Run every different text without an interchange, in batches; also its keys and values, if `stores` and it has some."""
        different = sorted({tuple(text) for text in texts}, key=lambda text: (len(text), text))
        numbers = {text: number for number, text in enumerate(different)}
        text = self.tensor([numbers[tuple(each)] for each in texts])
        ids = pad_sequence([self.tensor(each) for each in numbers], batch_first=True)
        lengths = self.tensor([len(each) for each in numbers])
        states, keys, odds = [], [], torch.zeros(len(texts), device=text.device)
        for rows in torch.arange(len(ids), device=text.device).split(self.batch_size):
            self._progress(what, int(rows[0]), len(ids))
            cache = DynamicCache() if stores else None
            try:
                *found, logits = self._resumed.observe(ids[rows], lengths[rows], cache)
            except IndexError as error:  # of learned positions
                longest = f"{type(self.model).__name__} cannot read a text of {int(lengths[rows].max())} tokens"
                raise InputError(f"{longest}: {first_line(error)}") from error
            states.append(found)
            keys.append(None if cache is None else states_of(cache, self._resumed.layer, ids.shape[1]))
            pairs = ((text >= rows[0]) & (text <= rows[-1])).nonzero().flatten()
            odds[pairs] = self._log_odds(logits[text[pairs] - rows[0]], pairs)
        entering, leaving = (torch.cat(each) for each in zip(*states, strict=True))
        runs, stored = TextRuns(text, ids, lengths, entering, leaving, odds), [each for each in keys if each is not None]
        return runs, torch.cat(stored) if len(stored) == len(keys) else None

    def _log_odds(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Log odds of the base's answer against the source's (nats)."""
        base, source = (
            logits.gather(1, label[rows].unsqueeze(1)).squeeze(1).float() for label in (self.base_label, self.source_label)
        )
        return base - source

    @torch.no_grad()
    def _reproduces_base_odds(self) -> bool:
        """Whether the last token alone, with stored keys of all others, gives the odds of complete texts, but for rounding."""
        texts = self._base.text
        last = self._base.lengths[texts] - 1
        odds = [self._log_odds(self._resumed_logits(texts[rows], last[rows]), rows) for rows in self.batches("stored keys")]
        return self._equals_base_odds(torch.cat(odds))

    @property
    def _tolerance(self) -> float:
        """Differences of logits up to it are rounding."""
        return 1e-3 if self._base.leaving.dtype.itemsize >= 4 else 0.5

    def _equals_base_odds(self, odds: Float[Tensor, " first"]) -> bool:
        """Whether the odds of the first pairs are those without an interchange, but for rounding, also of four large logits."""
        of_logits = 2 * torch.finfo(self._first_logits.dtype).eps * float(self._first_logits.abs().max())
        return bool((odds - self.base_odds[: len(odds)]).abs().max() < max(self._tolerance, of_logits))

    @torch.no_grad()
    def _logits_of_first(self) -> Tensor:
        """Logits after the first four base texts, from complete passes without an interchange."""
        return self._resumed.whole_logits(self._base.ids[:4], self._base.lengths[:4])

    @torch.no_grad()
    def _check_resumed(self) -> None:
        """Raise InputError unless runs from the site's block on give the odds of complete runs."""
        rows = torch.arange(min(4, len(self.pairs)), device=self.model.device)
        where = f"{type(self.model).__name__} cannot be run from block {self._resumed.layer} on, as an interchange needs"
        try:
            logits = self._resumed_logits(self._base.text[rows], torch.zeros_like(rows))
        except (InputError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise InputError(f"{where}: {first_line(error)}") from error
        if not self._equals_base_odds(self._log_odds(logits, rows)):
            raise InputError(f"{where}: its answers are others than those of complete runs")


class _Rotations(NamedTuple):
    """What is attached to a model, for the calls of every thread, with its maps now, and what is merged into it."""

    context: OpenContext | None
    maps: list[Tensor]
    merged: list[str]

    def are(self, others: _Rotations) -> bool:
        """Whether they are the same, with equal maps."""
        if self.context is not others.context or self.merged != others.merged:
            return False
        return all(torch.equal(one, other) for one, other in zip(self.maps, others.maps, strict=True))


def _rotations(model: PreTrainedModel) -> _Rotations:
    context = shared_context(model)
    read = () if context is None or context.maps is None else context.maps()
    maps = [entry.detach().clone() for each in read for entry in each if entry is not None]
    return _Rotations(context, maps, merged_rotations(model))
