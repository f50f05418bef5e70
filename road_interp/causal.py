"""Interchange interventions on counterfactual pairs: train them, count how often the answer follows, look where it does.

A base text is run with part of a hidden state taken from the source text's run. If that part carries the variable in which the
texts differ, the model now gives the source's answer (distributed alignment search, Geiger et al. 2024; CausalGym, Arora et al.
2024).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from road_interp.errors import InputError
from road_interp.pairs import CounterfactualPairs, Splits
from road_interp.sites.find import find_sites
from road_interp.sites.module_tree import block_stacks
from road_interp.sites.site import Site

# From the states of base and source at one token, `(batch, width)` each, to the state that the base run goes on with.
Interchange = Callable[[Tensor, Tensor], Tensor]


def no_swap(base: Tensor, source: Tensor) -> Tensor:
    """The base run as it is."""
    return base


def full_swap(base: Tensor, source: Tensor) -> Tensor:
    """The whole state of the source."""
    return source


class InterchangeRuns:
    """Base runs of pairs through a model, with one state exchanged for what an interchange makes of it and the source's.

    What comes before the intervened block is the same in every run: it is computed once, here, and later runs start at that block
    from what entered it. The model is frozen and set to evaluation mode.

    Args:
        model: a causal language model; for a RoadModel what `with road_model.attached() as model` gives, inside that block.
        site: whose output is exchanged, or the number of a block for that block's output.
        span: the token that ends this span, in base and in source.
        batch_size: pairs per forward pass where no gradient is needed.
    """

    def __init__(
        self, model: PreTrainedModel, pairs: CounterfactualPairs, site: Site | int, span: str, batch_size: int = 64
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.pairs, self.batch_size = pairs, batch_size
        pairs.span(span)  # before anything is run
        self.site = find_sites(model, "block-output", layers=site)[0] if isinstance(site, int) else site
        if self.site.layer is None or self.site.part is not None:
            raise InputError(f"site '{self.site.name}': an interchange acts on the whole output of a module inside the blocks")
        self._module = model.get_submodule(self.site.module)
        stacks = block_stacks(model)
        self._blocks = next(blocks for name, blocks in stacks.items() if self.site.module.startswith(f"{name}."))
        self._returns_tuple = False
        self.base_label, self.source_label = self._tensor(pairs.base_label), self._tensor(pairs.source_label)
        self._read(pairs.source_ids)
        self._source_states = torch.cat([self._observe(rows)[1] for rows in self._batches()])
        self._read(pairs.base_ids)
        entering, states, odds = zip(*(self._observe(rows) for rows in self._batches()), strict=True)
        self._entering, self._base_states = torch.cat(entering), torch.cat(states)
        self.base_odds: Float[Tensor, " pairs"] = torch.cat(odds)  # log odds of the base's answer when nothing is exchanged
        self._look_at(span)

    def at(self, span: str) -> InterchangeRuns:
        """The same runs with the exchange at another span."""
        other = copy.copy(self)
        other._look_at(span)
        return other

    def _look_at(self, span: str) -> None:
        self.span = span
        base, source = (self._tensor(ends) for ends in zip(*self.pairs.span(span), strict=True))
        here = torch.arange(len(self.pairs), device=base.device)
        self._position = base
        self.bases: Float[Tensor, "pairs width"] = self._base_states[here, base]
        self.sources: Float[Tensor, "pairs width"] = self._source_states[here, source]

    def logits(self, rows: Int[Tensor, " n"], interchange: Interchange) -> Float[Tensor, "n vocabulary"]:
        """Logits behind the base texts of these pairs. Gradients flow to the interchange's parameters."""

        def exchange(module: nn.Module, args: Any, output: Any) -> Any:
            states = output[0] if isinstance(output, tuple) else output
            where = torch.arange(len(rows), device=states.device), self._position[rows]
            changed = states.clone()
            changed[where] = interchange(states[where], self.sources[rows]).to(states.dtype)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        with ExitStack() as stack:
            stack.enter_context(self._resumed(rows))
            stack.callback(self._module.register_forward_hook(exchange).remove)
            return self._last_logits(rows)

    @torch.no_grad()
    def odds(self, interchange: Interchange) -> Float[Tensor, " pairs"]:
        """Log odds of the source's answer against the base's behind every base text, with the interchange."""
        return torch.cat([-self._log_odds(self.logits(rows, interchange), rows) for rows in self._batches()])

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=self.model.device)

    def _batches(self) -> tuple[Tensor, ...]:
        return torch.arange(len(self.pairs), device=self.model.device).split(self.batch_size)

    def _read(self, texts: Sequence[Sequence[int]]) -> None:
        """Make these texts, padded on the right, the ones that are run."""
        self._ids = pad_sequence([self._tensor(ids) for ids in texts], batch_first=True)
        self._lengths = self._tensor([len(ids) for ids in texts])

    def _last_logits(self, rows: Tensor) -> Tensor:
        lengths = self._lengths[rows]
        longest = int(lengths.max())
        mask = (torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)).long()
        wanted, place = (lengths - 1).unique(return_inverse=True)
        output = self.model(
            input_ids=self._ids[rows, :longest], attention_mask=mask, use_cache=False, logits_to_keep=wanted
        ).logits
        return output[torch.arange(len(rows), device=output.device), place]

    def _log_odds(self, logits: Tensor, rows: Tensor) -> Tensor:
        base, source = (
            logits.float().gather(1, label[rows].unsqueeze(1)).squeeze(1) for label in (self.base_label, self.source_label)
        )
        return base - source

    @torch.no_grad()
    def _observe(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What enters the block and what leaves the site, padded to the longest text of all, and the log odds at the end."""
        seen: dict[str, Tensor] = {}

        def before_block(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen["entering"] = args[0] if args else kwargs["hidden_states"]

        def after_site(module: nn.Module, args: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            if states.ndim != 3:
                raise InputError(
                    f"site '{self.site.name}': its output has shape {tuple(states.shape)}, not (batch, tokens, width)"
                )
            seen["leaving"] = states.clone()

        def after_block(block: nn.Module, args: Any, output: Any) -> None:
            self._returns_tuple = isinstance(output, tuple)

        block = self._blocks[self.site.layer or 0]
        with ExitStack() as stack:
            stack.callback(block.register_forward_pre_hook(before_block, with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(after_block).remove)
            stack.callback(self._module.register_forward_hook(after_site).remove)
            logits = self._last_logits(rows)
        missing = self._ids.shape[1] - seen["entering"].shape[1]
        entering, leaving = (functional.pad(seen[key], (0, 0, 0, missing)) for key in ("entering", "leaving"))
        return entering, leaving, self._log_odds(logits, rows)

    @contextmanager
    def _resumed(self, rows: Tensor) -> Iterator[None]:
        """Blocks before the site's pass on what they get, and its own starts from what entered it in the plain run."""
        states = self._entering[rows, : int(self._lengths[rows].max())]

        def skip(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return (hidden_states,) if self._returns_tuple else hidden_states

        def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

        layer = self.site.layer or 0
        with ExitStack() as stack:
            for block in self._blocks[:layer]:
                own = block.__dict__.get("forward")  # accelerate puts one there
                block.forward = skip
                stack.callback(_restore, block, own)
            stack.callback(self._blocks[layer].register_forward_pre_hook(enter, with_kwargs=True).remove)
            yield


def _restore(block: nn.Module, forward: Any) -> None:
    if forward is None:
        del block.forward
    else:
        block.forward = forward


# ---------------------------------------------------------------------- training


def train_interchange(
    runs: InterchangeRuns,
    interchange: nn.Module,
    steps: int = 200,
    learning_rate: float = 0.02,
    batch_size: int = 16,
    seed: int = 0,
    temperatures: tuple[float, float] | None = None,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[float, ...]:
    """Train an interchange, in place, to make the model give the source's answer; returns the loss of every step.

    Cross entropy of the source's answer among all answers of the task, behind the base text. Adam; the learning rate falls
    linearly to zero.

    Args:
        interchange: any pyvene intervention with a source, or module called with base and source states.
        temperatures: of a learned mask (`set_temperature`), at the first and the last step; geometric in between.
        progress: told the number of steps done and the last loss.
    """
    parameters = [parameter for parameter in interchange.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    answers = runs._tensor(runs.pairs.label_tokens)
    targets = torch.searchsorted(answers, runs.source_label)
    losses = []
    for step, rows in enumerate(_shuffled(len(runs.pairs), batch_size, steps, seed, answers.device)):
        if temperatures is not None:
            first, last = temperatures
            set_temperature: Any = interchange.set_temperature
            set_temperature(torch.tensor(first * (last / first) ** (step / max(1, steps - 1)), device=answers.device))
        loss = functional.cross_entropy(runs.logits(rows, interchange)[:, answers].float(), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        losses.append(loss.item())
        progress(step + 1, losses[-1])
    return tuple(losses)


def _shuffled(count: int, size: int, steps: int, seed: int, device: torch.device) -> Iterator[Tensor]:
    """`steps` batches of row numbers, every row once before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.cat([torch.randperm(count, generator=generator) for _ in range(-(-steps * size // count))])
    yield from rows[: steps * size].to(device).split(size)


# ---------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class InterchangeReport:
    """How one interchange does on pairs that it was not trained on.

    Attributes:
        task, site, span: what was exchanged where.
        method: which interchange.
        parameters: trained values; 0 where nothing was learned.
        examples: number of pairs.
        accuracy: share of pairs where the source's answer becomes likelier than the base's (interchange intervention accuracy).
        interval: its 95% interval (Wilson), pairs taken as independent.
        flipped: share of pairs where the model prefers the base's answer without the interchange and the source's with it.
        log_odds: CausalGym's log odds ratio (nats), mean over pairs: what the interchange adds to the log odds of the source's
            answer against the base's.
        log_odds_interval: its 95% interval (bootstrap over pairs).
    """

    task: str
    site: str
    span: str
    method: str
    parameters: int
    examples: int
    accuracy: float
    interval: tuple[float, float]
    flipped: float
    log_odds: float
    log_odds_interval: tuple[float, float]

    def to_json(self) -> str:
        """All numbers as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> InterchangeReport:
        """The report that `to_json` wrote."""
        return _from_json(text, cls.from_dict)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> InterchangeReport:
        """The report with these fields."""
        low_high = {key: tuple(content[key]) for key in ("interval", "log_odds_interval")}
        return cls(**{**content, **low_high})


def interchange_accuracy(runs: InterchangeRuns, interchange: Interchange, method: str) -> InterchangeReport:
    """Run every pair with an interchange, trained or not, and count. `method` names it in the report."""
    after, before = runs.odds(interchange).cpu().numpy(), runs.base_odds.cpu().numpy()
    swapped = after > 0
    interval = stats.binomtest(int(swapped.sum()), len(swapped)).proportion_ci(method="wilson")
    gain = after + before
    draws = np.random.default_rng(0).integers(len(gain), size=(1000, len(gain)))
    low, high = np.quantile(gain[draws].mean(1), (0.025, 0.975))
    return InterchangeReport(
        runs.pairs.name,
        runs.site.name,
        runs.span,
        method,
        count_parameters(interchange),
        len(swapped),
        float(swapped.mean()),
        (float(interval.low), float(interval.high)),
        float((swapped & (before > 0)).mean()),
        float(gain.mean()),
        (float(low), float(high)),
    )


def count_parameters(interchange: Interchange) -> int:
    """Trained values of an interchange."""
    parameters = interchange.parameters() if isinstance(interchange, nn.Module) else ()
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad)


@dataclass(frozen=True)
class ScanReport:
    """Interchange accuracy and log odds ratio by layer and span; `accuracy[i][j]` is of `layers[i]` and `spans[j]`."""

    task: str
    method: str
    layers: tuple[int, ...]
    spans: tuple[str, ...]
    accuracy: tuple[tuple[float, ...], ...]
    log_odds: tuple[tuple[float, ...], ...]

    def to_json(self) -> str:
        """All numbers as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ScanReport:
        """The report that `to_json` wrote."""

        def build(content: dict[str, Any]) -> ScanReport:
            tables = {key: tuple(map(tuple, content[key])) for key in ("accuracy", "log_odds")}
            return cls(**{**content, "layers": tuple(content["layers"]), "spans": tuple(content["spans"]), **tables})

        return _from_json(text, build)


def scan(
    model: PreTrainedModel,
    splits: Splits,
    layers: Sequence[int],
    spans: Sequence[str],
    make: Callable[[int], Interchange],
    method: str,
    progress: Callable[[int, str], None] = lambda layer, span: None,
    **training: Any,
) -> ScanReport:
    """Accuracy on the test split for every block output and span, each with an interchange of its own.

    Args:
        make: gives the interchange for a width; a module with parameters is trained on the training split first.
        method: its name in the report.
        progress: told the layer and span that come next.
        training: further arguments of `train_interchange`.
    """
    found: list[list[InterchangeReport]] = []
    for layer in layers:
        found.append([])
        train, test = None, InterchangeRuns(model, splits.test, layer, spans[0])
        for span in spans:
            progress(layer, span)
            interchange = make(test.site.width)
            if isinstance(interchange, nn.Module) and count_parameters(interchange):
                train = train or InterchangeRuns(model, splits.train, layer, spans[0])
                train_interchange(train.at(span), interchange.to(model.device), **training)
            found[-1].append(interchange_accuracy(test.at(span), interchange, method))
    accuracy, log_odds = (
        tuple(tuple(getattr(report, key) for report in row) for row in found) for key in ("accuracy", "log_odds")
    )
    return ScanReport(splits.test.name, method, tuple(layers), tuple(spans), accuracy, log_odds)


def _from_json(text: str, build: Callable[[dict[str, Any]], Any]) -> Any:
    try:
        return build(json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"this is not the JSON of an interchange report ({error})") from None
