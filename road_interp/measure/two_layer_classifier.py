"""Classifiers on frozen states that see the whole state, its angle or its magnitude (paper, pilot study 2)."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from road_interp.data.metrics import METRICS
from road_interp.errors import InputError
from road_interp.measure.frozen_states import Features, SplitFeatures
from road_interp.models.seeding import generator_of, seeded

FULL, RANDOM, ANGLE, MAGNITUDE = ARMS = ("full", "random backbone", "angle only", "magnitude only")
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # learning rates
EPOCHS, BATCH_SIZE = 20, 128


class TwoLayerClassifier(nn.Module):
    """A two-layer classifier on frozen states whose first layer depends on the whole state, its angle or its magnitude.

    The paper does not state what is between its two layers; here it is a batch normalisation and a tanh, as in RoBERTa's head. At
    test time the normalisation is a scale and a shift per unit. It gives the inputs of the tanh the same spread in all arms:
    cosines differ little between texts, products of magnitudes are large, and states of a random backbone are nearly equal. One
    grid of learning rates therefore serves all arms. The states are not standardised, because that would change their angles.

    Args:
        arm: one of ARMS; "random backbone" uses the full layer.
        width: of the states.
        num_labels: number of classes, or 1 for regression.
        centre, spread: mean and standard deviation of regression labels; 0 and 1 for classes.
    """

    def __init__(self, arm: str, width: int, num_labels: int, centre: float = 0.0, spread: float = 1.0) -> None:
        super().__init__()
        self.arm, self.centre, self.spread = arm, centre, spread
        self.first = nn.Linear(width, width, bias=False)  # the paper's W transposed: its rows are the columns of W
        self.norm = nn.BatchNorm1d(width, eps=1e-12)
        self.second = nn.Linear(width, num_labels)

    def forward(self, states: Float[Tensor, "texts width"]) -> Float[Tensor, "texts labels"]:
        """Logits, or numbers for regression."""
        return self.spread * self.second(torch.tanh(self.norm(self.units(states)))) + self.centre

    def units(self, states: Float[Tensor, "texts width"]) -> Float[Tensor, "texts width"]:
        """The first layer: W^T x, cos(W_:,i , x) or ||W_:,i|| ||x||."""
        weight = self.first.weight
        if self.arm == ANGLE:
            return functional.normalize(states) @ functional.normalize(weight).T
        if self.arm == MAGNITUDE:
            return torch.outer(states.norm(dim=1), weight.norm(dim=1))
        return self.first(states)

    @torch.no_grad()
    def predict(self, states: Float[np.ndarray, "texts width"]) -> Float[np.ndarray, " texts"]:
        """Class indices, or numbers for regression, in evaluation mode."""
        output = self.eval()(torch.from_numpy(states))
        return (output.argmax(1) if output.shape[1] > 1 else output[:, 0]).double().numpy()


def train_arm(arm: str, splits: SplitFeatures, metric: str, num_labels: int, seed: int) -> tuple[TwoLayerClassifier, float]:
    """Train one arm with every learning rate, and select the classifier on the validation texts.

    For the same seed, every arm has the same initial weights, batches and number of epochs.

    Returns:
        The classifier of the best learning rate and epoch, and its learning rate. In a tie the smaller rate wins, then the
        earlier epoch.

    Raises:
        InputError: no epoch produced a finite score.
    """
    validation = splits["validation"]
    best, chosen, best_score = None, 0.0, -np.inf
    for rate in RATES:
        for classifier in _epochs(arm, splits["train"], num_labels, seed, rate):
            score = METRICS[metric](validation.labels, classifier.predict(validation.states))
            if score > best_score:
                best, chosen, best_score = deepcopy(classifier), rate, score
    if best is None:
        raise InputError(f"'{arm}': no epoch produced a finite {metric}")
    return best, chosen


def _epochs(arm: str, train: Features, num_labels: int, seed: int, rate: float) -> Iterator[TwoLayerClassifier]:
    """Train a classifier, yielding it after every epoch."""
    states, labels = torch.from_numpy(train.states), torch.from_numpy(train.labels)
    if num_labels > 1:
        labels = labels.long()
    scale = (float(labels.mean()), float(labels.std()) or 1.0) if num_labels == 1 else (0.0, 1.0)
    with seeded(seed):
        classifier = TwoLayerClassifier(arm, states.shape[1], num_labels, *scale)
    order = generator_of(seed)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=rate)
    for _ in range(EPOCHS):
        classifier.train()
        for rows in torch.randperm(len(states), generator=order).split(BATCH_SIZE):
            if len(rows) == 1:
                continue  # batch normalisation needs at least two rows
            output = classifier(states[rows])
            if num_labels == 1:
                loss = functional.mse_loss(output[:, 0], labels[rows].to(output.dtype))
            else:
                loss = functional.cross_entropy(output, labels[rows].long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield classifier
