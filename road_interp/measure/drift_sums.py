"""What the comparison of the states of two models keeps of the texts: sums that can be merged, and a sample of points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from road_interp.measure.intervals import interval

DRAWS = 1000  # bootstrap samples
SAMPLE = 500  # texts whose points are kept
SEED = 0  # of bootstrap and sample
COLUMNS = ("dM", "signed", "dD", "angle")  # averaged quantities; three products for the correlation follow them in all arrays
Mean = tuple[float, float, float]  # the mean over states, and its 95% bootstrap interval over texts


@dataclass(frozen=True, eq=False)
class DriftSums:
    """Sums over a subset of the texts, of constant size; `merge` combines disjoint subsets in any order.

    A text's weights in the Poisson bootstrap (Chamandy et al. 2012) and its membership in the sample depend on its number only,
    not on the batches or the processes.

    Attributes:
        texts, states: numbers of texts and states.
        totals: sums over states of COLUMNS, of dM^2 and angle^2, and of dM times angle.
        redrawn: sums of COLUMNS in every bootstrap sample.
        redrawn_states: number of states in every bootstrap sample.
        keys: random numbers of the sampled texts, ascending; these are the smallest ones of all texts.
        points: (dD, dM) of one state of each sampled text, drawn at random, at every read point.
    """

    texts: int
    states: int
    totals: Float[np.ndarray, "places 7"]
    redrawn: Float[np.ndarray, "draws places 4"]
    redrawn_states: Float[np.ndarray, " draws"]
    keys: Float[np.ndarray, " sample"]
    points: Float[np.ndarray, "sample places 2"]

    @classmethod
    def of(cls, values: Float[np.ndarray, "states places 7"], rows: Int[np.ndarray, " states"], numbers: range) -> DriftSums:
        """The sums of a batch.

        Args:
            values: of every state, the quantities of `totals`.
            rows: the text of each state, counted in the batch; every text has one state at least.
            numbers: of the texts, counted over all batches.
        """
        texts = len(numbers)
        keys, weights, chosen = np.empty(texts), np.empty((texts, DRAWS)), np.empty(texts, int)
        for row, number in enumerate(numbers):
            generator = np.random.default_rng([SEED, number])
            keys[row], weights[row] = generator.random(), generator.poisson(1, DRAWS)
            chosen[row] = generator.choice(np.flatnonzero(rows == row))
        by_state = weights[rows]
        redrawn = np.tensordot(by_state, values[:, :, : len(COLUMNS)], (0, 0))
        points = values[chosen][:, :, [COLUMNS.index("dD"), COLUMNS.index("dM")]]
        first = np.argsort(keys)[:SAMPLE]
        return cls(texts, len(values), values.sum(0), redrawn, by_state.sum(0), keys[first], points[first])

    def merge(self, other: DriftSums) -> DriftSums:
        """The sums over both subsets."""
        keys, points = np.concatenate([self.keys, other.keys]), np.concatenate([self.points, other.points])
        first = np.argsort(keys)[:SAMPLE]
        return DriftSums(
            self.texts + other.texts,
            self.states + other.states,
            self.totals + other.totals,
            self.redrawn + other.redrawn,
            self.redrawn_states + other.redrawn_states,
            keys[first],
            points[first],
        )

    def means(self, index: int) -> list[Mean]:
        """Mean and 95% interval of COLUMNS at the read point with an index."""
        nonempty = self.redrawn_states > 0  # with very few texts a bootstrap sample may be empty
        redrawn = self.redrawn[nonempty, index] / self.redrawn_states[nonempty, None]
        means = self.totals[index] / self.states
        return [(float(means[column]), *interval(redrawn[:, column])) for column in range(len(COLUMNS))]

    def correlation(self, index: int) -> float | None:
        """Pearson correlation of dM and angle at the read point with an index; None if either is constant."""
        moments = self.totals[index] / self.states
        dM, angle, (dM_square, angle_square, product) = moments[COLUMNS.index("dM")], moments[COLUMNS.index("angle")], moments[4:]
        variances = dM_square - dM**2, angle_square - angle**2
        if variances[0] <= 1e-12 * dM_square or variances[1] <= 1e-12 * angle_square:  # constant, up to rounding
            return None
        return float((product - dM * angle) / np.sqrt(variances[0] * variances[1]))
