"""How a metric grows with the training set: bands, differences, how many patients a model needs.

A cell of the study is one model, trained on one number of patients with one seed, and tested on the
same test patients as every other cell. Two things could have come out otherwise: which patients
were drawn for training (the seed) and which for testing. Hence a bootstrap in two stages: draw the
seeds, draw the test patients, average the metric over the seeds drawn. All models and sizes
share both draws, so differences between them are paired.

Of S seeds, S − 1 are drawn: the variance of a mean of S drawn with replacement is too small by
(S − 1)/S, a third with three seeds (Rao & Wu, 1988, https://doi.org/10.1080/01621459.1988.10478591).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from sgc_experiments.bootstrap import bootstrap, interval, p_value
from sgc_experiments.comparison import align, holm
from sgc_experiments.errors import UserError
from sgc_experiments.evaluation import N_BOOTSTRAP, Thresholds, metrics_of
from sgc_experiments.metrics import Floats


class Cell(NamedTuple):
    """Test predictions of one model, trained on `size` patients (or another axis) with one seed."""

    model: str
    size: float
    seed: int
    predictions: pd.DataFrame
    thresholds: Thresholds | None = None


@dataclass(frozen=True)
class LearningCurves:
    """Mean over seeds of a metric by model and training size, with its bootstrap samples.

    Attributes:
        metric: its name.
        models: M names.
        sizes: K training sizes, ascending.
        values: shape (M, K), NaN where no cell is there.
        samples: shape (M, K, B).
        spread: standard deviation over seeds, shape (M, K), NaN with one seed.
        n_seeds: shape (M, K).
        n_patients: number of test patients.
    """

    metric: str
    models: tuple[str, ...]
    sizes: Floats
    values: Floats
    samples: Floats
    spread: Floats
    n_seeds: np.ndarray
    n_patients: int

    def table(self) -> pd.DataFrame:
        """One row per model and size: `model`, `size`, `metric`, `value`, `low`, `high`, …."""
        rows = []
        for m, model in enumerate(self.models):
            for k in np.flatnonzero(self.n_seeds[m]):
                value = self.values[m, k]
                low, high = interval(value, self.samples[m, k], n_patients=self.n_patients)
                rows.append({
                    "model": model,
                    "size": self.sizes[k],
                    "metric": self.metric,
                    "value": value,
                    "low": low,
                    "high": high,
                    "spread_over_seeds": self.spread[m, k],
                    "n_seeds": int(self.n_seeds[m, k]),
                    "n_patients": self.n_patients,
                })  # fmt: skip
        return pd.DataFrame(rows)

    def differences(self, reference: str) -> pd.DataFrame:
        """Paired difference of every model to a reference at every size that both have.

        Returns:
            `model`, `reference`, `size`, `metric`, `difference` (model − reference), `low`,
            `high`, `p`, `p_holm` (over all rows: models × sizes are one family).

        Raises:
            UserError: an unknown reference.
        """
        r = self._index(reference)
        rows = []
        for m, model in enumerate(self.models):
            for k in np.flatnonzero((self.n_seeds[m] > 0) & (self.n_seeds[r] > 0)):
                if m == r:
                    continue
                difference = self.values[m, k] - self.values[r, k]
                samples = self.samples[m, k] - self.samples[r, k]
                low, high = interval(difference, samples, n_patients=self.n_patients)
                rows.append({
                    "model": model,
                    "reference": reference,
                    "size": self.sizes[k],
                    "metric": self.metric,
                    "difference": difference,
                    "low": low,
                    "high": high,
                    "p": p_value(difference, samples, n_patients=self.n_patients),
                })  # fmt: skip
        columns = ["model", "reference", "size", "metric", "difference", "low", "high", "p"]
        table = pd.DataFrame(rows, columns=columns)
        return table.assign(p_holm=holm(table["p"].to_numpy(dtype=np.float64)))

    def smallest_size(self, target: float) -> pd.DataFrame:
        """Smallest training size at which each model reaches a value, by interpolation in log size.

        Returns:
            `model`, `target`, `size`, `low`, `high`, `reached`: "within" the sizes tried, "at most"
            (the smallest already does; its size is given) or "never" (size is infinite). An upper
            limit that is infinite says that the sizes tried do not bound it.
        """
        rows = []
        for m, model in enumerate(self.models):
            sizes, values, samples = self._curve(m)
            size = _first_reaching(sizes, values[None], np.array([target]))[0]
            drawn = _first_reaching(sizes, samples.T, np.full(samples.shape[1], target))
            low, high = _limits(drawn)
            low = min(low, sizes[-1])
            reached = "never" if np.isinf(size) else "at most" if size == sizes[0] else "within"
            rows.append((model, target, size, low, high, reached))
        columns = ["model", "target", "size", "low", "high", "reached"]
        return pd.DataFrame(rows, columns=columns)

    def label_efficiency(self, reference: str) -> pd.DataFrame:
        """How many times the reference's patients each model needs for the reference's result.

        Returns:
            For every other model and every size of the reference: `model`, `reference`, `size` (of
            the reference), `target` (its value there), `factor` (> 1: the model needs more),
            `low`, `high`, `bound`: "" or "at least" (the model never gets there: the factor is
            that of the greatest size tried) or "at most" (it is there at the smallest size).

        Raises:
            UserError: an unknown reference.
        """
        r = self._index(reference)
        rows = []
        own_sizes, own_values, own_samples = self._curve(r)
        for m, model in enumerate(self.models):
            if m == r:
                continue
            sizes, values, samples = self._curve(m)
            for size, target, drawn in zip(own_sizes, own_values, own_samples, strict=True):
                needed = _first_reaching(sizes, values[None], np.array([target]))[0]
                bound = "at least" if np.isinf(needed) else "at most" if needed == sizes[0] else ""
                low, high = _limits(_first_reaching(sizes, samples.T, drawn) / size)
                low = min(low, sizes[-1] / size)
                factor = min(needed, sizes[-1]) / size
                rows.append((model, reference, size, target, factor, low, high, bound))
        columns = ["model", "reference", "size", "target", "factor", "low", "high", "bound"]
        return pd.DataFrame(rows, columns=columns)

    def _index(self, model: str) -> int:
        if model not in self.models:
            raise UserError(f"No model {model}; there are {', '.join(self.models)}.")
        return self.models.index(model)

    def _curve(self, m: int) -> tuple[Floats, Floats, Floats]:
        """Sizes, values and samples of one model where it has cells."""
        there = self.n_seeds[m] > 0
        return self.sizes[there], self.values[m, there], self.samples[m, there]


def learning_curves(
    cells: Sequence[Cell],
    *,
    metric: str = "auc",
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> LearningCurves:
    """Average cells over seeds and resample seeds and test patients.

    Args:
        cells: finished cells in any order; the grid may have gaps.
        metric: name as in `evaluation.evaluate`.
        n_bootstrap: number of resamples.
        seed: of the resamples.

    Raises:
        UserError: no cell, a cell twice, test sets that differ, an unknown metric, one class only.
    """
    if not cells:
        raise UserError("There is no finished cell to draw a learning curve from.")
    names = {f"{c.model}, size {c.size:g}, seed {c.seed}": c.predictions for c in cells}
    if len(names) < len(cells):
        raise UserError("A cell (model, size, seed) occurs twice in the learning curve.")
    frames = align(names)
    first = next(iter(frames.values()))
    if first["label"].nunique() < 2:
        raise UserError("The test images of the learning curve hold one class only.")
    models = tuple(dict.fromkeys(cell.model for cell in cells))
    sizes = np.array(sorted({float(cell.size) for cell in cells}))
    grid: dict[tuple[int, int], list[tuple[int, float, Floats]]] = {}
    for cell, frame in zip(cells, frames.values(), strict=True):
        statistic = metrics_of(frame, cell.thresholds)
        drawn = bootstrap(statistic, frame["patient"], n_bootstrap=n_bootstrap, seed=seed)
        if metric not in drawn.estimate:
            raise UserError(f"Unknown metric {metric}; there are {', '.join(drawn.estimate)}.")
        place = models.index(cell.model), int(np.searchsorted(sizes, cell.size))
        grid.setdefault(place, []).append(
            (cell.seed, drawn.estimate[metric], drawn.samples[metric])
        )
    shape = (len(models), len(sizes))
    values, spread = np.full(shape, np.nan), np.full(shape, np.nan)
    samples, n_seeds = np.full((*shape, n_bootstrap), np.nan), np.zeros(shape, dtype=int)
    most = max(map(len, grid.values()))
    # One draw for all models and sizes: with the same seeds, the same seeds are drawn.
    draws = np.random.default_rng([seed, 1]).random((n_bootstrap, most))
    for place, found in grid.items():
        found.sort(key=lambda entry: entry[0])
        estimates = np.array([entry[1] for entry in found])
        n_seeds[place], values[place] = len(found), estimates.mean()
        if len(found) > 1:
            spread[place] = estimates.std(ddof=1)
        samples[place] = _mean_over_drawn_seeds(np.array([entry[2] for entry in found]), draws)
    return LearningCurves(
        metric, models, sizes, values, samples, spread, n_seeds, first["patient"].nunique()
    )


def _mean_over_drawn_seeds(samples: Floats, draws: Floats) -> Floats:
    """Average (S, B) samples over S − 1 drawn seeds (the only one if S = 1), shape (B,)."""
    n_seeds = len(samples)
    drawn = (draws[:, : max(1, n_seeds - 1)] * n_seeds).astype(int)
    means: Floats = samples[drawn, np.arange(samples.shape[1])[:, None]].mean(axis=1)
    return means


def _first_reaching(sizes: Floats, curves: Floats, targets: Floats) -> Floats:
    """Size at which each of B curves (B, K) first reaches its target (B,); infinite if never."""
    reached = curves >= targets[:, None]
    k = reached.argmax(axis=1)
    rows = np.arange(len(curves))
    before = np.maximum(k - 1, 0)
    rise = curves[rows, k] - curves[rows, before]
    share = np.divide(
        targets - curves[rows, before], rise, out=np.zeros(len(curves)), where=(k > 0) & (rise > 0)
    )
    logs = np.log(sizes)
    # At the first size there is nothing to interpolate: the size itself is exact.
    size = np.where(k == 0, sizes[0], np.exp(logs[before] + share * (logs[k] - logs[before])))
    return np.where(reached.any(axis=1), size, np.inf)


def _limits(drawn: Floats) -> tuple[float, float]:
    # Order statistics, because interpolation between two infinite values is undefined.
    low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)
