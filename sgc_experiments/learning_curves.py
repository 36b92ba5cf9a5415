"""How a metric grows with the training set: bands, differences, how many patients a model needs.

A cell of the grid is one model, trained on one number of patients with one seed, and tested on the
same test patients as every other cell. Two things could have come out otherwise: which patients
were drawn for training (the seed) and which for testing. Means over the seeds and their paired
differences get the interval of `bootstrap.interval`: over resamples of the test patients, which all
models and sizes share, widened by the variance between the S seeds, of S − 1 degrees of freedom. In
simulated studies of 77 patients with 3 seeds it held the true mean in 91-95 %, whichever of the two
varied more; with 2 seeds, which say little of how far seeds vary, in 87-95 %. With one seed the
variance between seeds is not known and not included: the interval is that of this one fit.

How many patients a model needs has no variance, since it may be infinite. There the bootstrap has
two stages: draw the seeds, draw the test patients, average the metric over the seeds drawn. Of S
seeds, S − 1 are drawn: the variance of a mean of S drawn with replacement is too small by
(S − 1)/S, a third with three seeds (Rao & Wu, 1988,
https://doi.org/10.1080/01621459.1988.10478591). Its limits lie within what the seeds showed: with
few seeds they are rather too narrow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from sgc_experiments.bootstrap import Source, bootstrap, interval, p_value
from sgc_experiments.comparison import align, holm
from sgc_experiments.errors import UserError
from sgc_experiments.evaluation import N_BOOTSTRAP, Thresholds, metrics_of
from sgc_experiments.intervals import PatientCounts, metric_interval
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
        samples: of the mean on resamples of the patients, shape (M, K, B).
        drawn_samples: the same with drawn seeds as well.
        by_seed: the metric of every seed, by the indices of model and size.
        patients: that the models were tested on.
    """

    metric: str
    models: tuple[str, ...]
    sizes: Floats
    values: Floats
    samples: Floats
    drawn_samples: Floats
    by_seed: Mapping[tuple[int, int], Mapping[int, float]]
    patients: PatientCounts

    def table(self) -> pd.DataFrame:
        """One row per model and size: `model`, `size`, `metric`, `value`, `low`, `high`, …."""
        rows = []
        for m, model in enumerate(self.models):
            for k in self._there(m):
                seeds = self.by_seed[m, k]
                value, samples = self.values[m, k], self.samples[m, k]
                low, high, _ = metric_interval(
                    self.metric, value, samples, self.patients, _between_seeds(seeds)
                )
                rows.append({
                    "model": model,
                    "size": self.sizes[k],
                    "metric": self.metric,
                    "value": value,
                    "low": low,
                    "high": high,
                    "spread_over_seeds": np.std([*seeds.values()], ddof=1)
                    if len(seeds) > 1
                    else np.nan,
                    "n_seeds": len(seeds),
                    "n_patients": self.patients.all,
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
            if m == r:
                continue
            for k in np.intersect1d(self._there(m), self._there(r)):
                difference = self.values[m, k] - self.values[r, k]
                samples = self.samples[m, k] - self.samples[r, k]
                n_patients = self.patients.behind(self.metric)
                others = _between_seeds(self.by_seed[m, k], self.by_seed[r, k])
                low, high = interval(difference, samples, n_patients=n_patients, others=others)
                p = p_value(difference, samples, n_patients=n_patients, others=others)
                rows.append({
                    "model": model,
                    "reference": reference,
                    "size": self.sizes[k],
                    "metric": self.metric,
                    "difference": difference,
                    "low": low,
                    "high": high,
                    "p": p,
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
            low, high = _size_limits(sizes, samples, np.full(samples.shape[1], target))
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
                low, high = _size_limits(sizes, samples, drawn)
                factors = (n / size for n in (min(needed, sizes[-1]), low, high))
                rows.append((model, reference, size, target, *factors, bound))
        columns = ["model", "reference", "size", "target", "factor", "low", "high", "bound"]
        return pd.DataFrame(rows, columns=columns)

    def _index(self, model: str) -> int:
        if model not in self.models:
            raise UserError(f"No model {model}; there are {', '.join(self.models)}.")
        return self.models.index(model)

    def _there(self, m: int) -> list[int]:
        """Indices of the sizes at which a model has cells."""
        return [k for k in range(len(self.sizes)) if (m, k) in self.by_seed]

    def _curve(self, m: int) -> tuple[Floats, Floats, Floats]:
        """Sizes, values and samples with drawn seeds of one model where it has cells."""
        there = self._there(m)
        return self.sizes[there], self.values[m, there], self.drawn_samples[m, there]


def learning_curves(
    cells: Sequence[Cell],
    *,
    metric: str = "auc",
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> LearningCurves:
    """Average cells over seeds, and resample test patients and seeds.

    Args:
        cells: finished cells in any order; the grid may have gaps.
        metric: name as in `evaluation.evaluate`.
        n_bootstrap: number of resamples.
        seed: of the resamples.

    Raises:
        UserError: no cell, a cell twice, test sets that differ, an unknown metric, one class only.
    """
    frames = _aligned(cells)
    models = tuple(dict.fromkeys(cell.model for cell in cells))
    sizes = np.array(sorted({float(cell.size) for cell in cells}))
    values = np.full((len(models), len(sizes)), np.nan)
    samples = np.full((*values.shape, n_bootstrap), np.nan)
    drawn_samples = samples.copy()
    found: dict[tuple[int, int], dict[int, tuple[float, Floats]]] = {}
    for cell, frame in zip(cells, frames, strict=True):
        statistic = metrics_of(frame, cell.thresholds)
        drawn = bootstrap(statistic, frame["patient"], n_bootstrap=n_bootstrap, seed=seed)
        if metric not in drawn.estimate:
            raise UserError(f"Unknown metric {metric}; there are {', '.join(drawn.estimate)}.")
        place = models.index(cell.model), int(np.searchsorted(sizes, cell.size))
        found.setdefault(place, {})[cell.seed] = drawn.estimate[metric], drawn.samples[metric]
    # One draw for all models and sizes: with the same seeds, the same seeds are drawn.
    draws = np.random.default_rng([seed, 1]).random((n_bootstrap, max(map(len, found.values()))))
    by_seed = {}
    for place, of_place in found.items():
        by_seed[place] = {number: of_place[number][0] for number in sorted(of_place)}
        of_seeds = np.array([of_place[number][1] for number in by_seed[place]])
        values[place] = np.mean([*by_seed[place].values()])
        samples[place] = of_seeds.mean(axis=0)
        drawn_samples[place] = _mean_over_drawn_seeds(of_seeds, draws)
    patients = PatientCounts.of(frames[0])
    return LearningCurves(metric, models, sizes, values, samples, drawn_samples, by_seed, patients)


def _aligned(cells: Sequence[Cell]) -> list[pd.DataFrame]:
    if not cells:
        raise UserError("There is no finished cell to draw a learning curve from.")
    names = {f"{c.model}, size {c.size:g}, seed {c.seed}": c.predictions for c in cells}
    if len(names) < len(cells):
        raise UserError("A cell (model, size, seed) occurs twice in the learning curve.")
    frames = list(align(names).values())
    if frames[0]["label"].nunique() < 2:
        raise UserError("The test images of the learning curve hold one class only.")
    return frames


def _between_seeds(
    own: Mapping[int, float], reference: Mapping[int, float] | None = None
) -> list[Source]:
    """Variance of a mean over seeds, or of the difference of two; none is known of one seed."""
    parts = [[*own.values()]]
    if reference is not None:
        if own.keys() == reference.keys():
            parts = [[own[seed] - reference[seed] for seed in own]]
        else:
            parts.append([*reference.values()])
    return [Source(float(np.var(p, ddof=1)) / len(p), len(p) - 1) for p in parts if len(p) > 1]


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


def _size_limits(sizes: Floats, samples: Floats, targets: Floats) -> tuple[float, float]:
    """95 % limits of the size at which drawn curves (K, B) reach their targets (B,).

    A resample in which the metric is not defined says nothing of the size and is left out. The
    lower limit is at most the greatest size.
    """
    defined = np.isfinite(samples).all(axis=0) & np.isfinite(targets)
    if not defined.any():
        return float("nan"), float("nan")
    drawn = _first_reaching(sizes, samples[:, defined].T, targets[defined])
    # Order statistics, because interpolation between two infinite values is undefined.
    low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
    return min(float(low), float(sizes[-1])), float(high)
