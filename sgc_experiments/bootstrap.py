"""Bootstrap over patients: intervals that respect that images of one patient resemble each other.

Patients are drawn with replacement, each with all of its images; a resample is the vector of how
often each patient was drawn. The weights of a resample are the same for every statistic and every
model that is computed from the same patients and seed, so differences between models are paired.

Intervals are bias-corrected percentile intervals (Efron & Tibshirani, *An Introduction to the
Bootstrap*, 1993, chapter 14), expanded for few patients: the normal quantile z is replaced by
√(n/(n−1))·t of n − 1 degrees of freedom (Hesterberg, 2015,
https://doi.org/10.1080/00031305.2015.1089789). With 25 patients of 1-4 images, plain percentile
intervals of a 0.80 AUC held the true value in 91 % of 600 simulated studies, these in 95 %.

A mean over a few fits varies with their seeds as well. Resampling two or three seeds cannot tell
how far: no resample of theirs lies outside what was seen. So their variance s²/S is added to that
of the patients, with the t quantile of ν degrees of freedom (Satterthwaite, 1946,
https://doi.org/10.2307/3002019)

    ν = (Σ_i v_i)² / Σ_i (v_i² / ν_i),

where v_i and ν_i are the variance and the degrees of freedom of patients and of seeds (S − 1). The
patients' share is, on each side, what they alone would give, so that the interval of a high AUC
stays lopsided (as in Zou & Donner, 2008, https://doi.org/10.1002/sim.3095).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from sgc_experiments.metrics import Floats

Statistic = Callable[[Floats], dict[str, Floats]]
"""Weights (B, N) to named values (B,)."""

# Weights of one block of resamples stay in the processor's cache.
_BLOCK = 2**18
# Halvings of the range of a p value: it is found to 10⁻⁶.
_BISECTIONS = 20


class Resampling(TypedDict):
    """How patients are resampled: how often, and the seed."""

    n_bootstrap: int
    seed: int


class Resamples(NamedTuple):
    """A statistic on the images as they are, and on resamples of their patients."""

    estimate: dict[str, float]
    samples: dict[str, Floats]  # each of shape (n_bootstrap,)


class Source(NamedTuple):
    """What an estimate varies with beside the patients: a variance and its degrees of freedom."""

    variance: float
    degrees: float


def patient_draws(n_patients: int, n_bootstrap: int, seed: int) -> NDArray[np.int16]:
    """How often each patient is drawn, shape (n_bootstrap, n_patients); rows sum to n_patients."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(n_patients, size=(n_bootstrap, n_patients))
    drawn += n_patients * np.arange(n_bootstrap)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=n_bootstrap * n_patients)
    return counts.reshape(n_bootstrap, n_patients).astype(np.int16)


def bootstrap(
    statistic: Statistic, patients: ArrayLike, *, n_bootstrap: int, seed: int
) -> Resamples:
    """Compute a statistic on all images and on `n_bootstrap` resamples of the patients.

    Args:
        statistic: maps weights (B, N) to arrays (B,) by name.
        patients: patient of each image, shape (N,). The order of the images does not matter;
            equal sets of patients and equal seeds give equal draws.
        n_bootstrap: number of resamples.
        seed: of the random draws.
    """
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    draws = patient_draws(len(names), n_bootstrap, seed)
    estimate = {k: float(v[0]) for k, v in statistic(np.ones((1, len(index)))).items()}
    step = max(1, _BLOCK // len(index))
    blocks = [
        statistic(draws[start : start + step, index].astype(np.float64))
        for start in range(0, n_bootstrap, step)
    ]
    samples = {
        name: np.concatenate([block[name] for block in blocks]) if blocks else np.empty(0)
        for name in estimate
    }
    return Resamples(estimate, samples)


def interval(
    estimate: float,
    samples: Floats,
    *,
    n_patients: int,
    others: Sequence[Source] = (),
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Expanded, bias-corrected percentile interval.

    Args:
        estimate: the statistic on the data as they are.
        samples: the statistic on the resamples, shape (B,); NaN (undefined) ones are left out.
        n_patients: number of patients that the statistic rests on (`intervals.PatientCounts`).
        others: what the estimate varies with beside the patients.
        confidence: coverage, in (0, 1).

    Returns:
        Lower and upper limit; (NaN, NaN) if nothing is left, or with a single patient.
    """
    valid = samples[np.isfinite(samples)]
    if not len(valid) or not np.isfinite(estimate) or n_patients < 2:
        return float("nan"), float("nan")
    shift = 2 * ndtri(_share_below(valid, estimate))
    tail = np.sqrt(n_patients / (n_patients - 1)) * stdtrit(n_patients - 1, (1 - confidence) / 2)
    low, high = np.quantile(valid, ndtr([shift + tail, shift - tail]))
    limits = float(low), float(high)
    return widened(estimate, limits, valid, n_patients, others, confidence=confidence)


def widened(
    estimate: float,
    limits: tuple[float, float],
    samples: Floats,
    n_patients: int,
    others: Sequence[Source],
    *,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Limits for patients and others, from those for the patients alone.

    Args:
        estimate: the statistic on the data as they are.
        limits: for the patients alone.
        samples: the statistic on the resamples of the patients, shape (B,), all defined.
        n_patients: number of patients that the statistic rests on, at least 2.
        others: what the estimate varies with beside the patients.
        confidence: coverage of `limits`, in (0, 1).
    """
    own = Source(float(np.var(samples)) * n_patients / (n_patients - 1), n_patients - 1)
    total = sum(source.variance for source in (own, *others))
    if total == own.variance:
        return limits
    squares = sum(source.variance**2 / source.degrees for source in (own, *others))
    of_all = stdtrit(total**2 / squares, (1 - confidence) / 2)
    of_own = stdtrit(own.degrees, (1 - confidence) / 2)
    distances = (np.array(limits) - estimate) * of_all / of_own
    low, high = np.sqrt(distances**2 + of_all**2 * (total - own.variance))
    return float(estimate - low), float(estimate + high)


def quadrature_interval(
    estimate: float, samples: Floats, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of a non-negative error that noise can only raise, such as the ECE.

    Noise adds to such an error in squares, once in the estimate and once more in every resample.
    So the squares of the resamples are reflected at the square of the estimate, which takes the
    noise off again; the interval starts at 0 where nothing but noise is seen. In simulated studies
    of 30, 60 and 150 patients with a true ECE of 0.00 to 0.15 it held the true value in 89-100 % of
    250 cases each, the percentile interval in 0-91 %.

    Args:
        estimate: the error on the data as they are.
        samples: the error on the resamples, shape (B,).
        confidence: coverage, in (0, 1).
    """
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    squares = np.quantile(2 * estimate**2 - samples**2, tails)
    low, high = np.sqrt(np.maximum(squares, 0))
    return float(min(low, estimate)), float(max(high, estimate))


def exact_limit(perfect: float, sample_size: int, confidence: float = 0.95) -> float:
    """Clopper-Pearson limit opposite to an observed proportion of exactly 0 or 1."""
    shortfall: float = ((1 - confidence) / 2) ** (1 / sample_size)
    return shortfall if perfect == 1 else 1 - shortfall


def p_value(
    estimate: float,
    samples: Floats,
    *,
    n_patients: int,
    others: Sequence[Source] = (),
    null: float = 0.0,
) -> float:
    """Two-sided p value: one minus the confidence at which `interval` just reaches `null`.

    It is never smaller than 2/(B + 1), the resolution of B resamples, and 1 if every resample
    equals `null`. Arguments as `interval`.
    """
    valid = samples[np.isfinite(samples)]
    if not len(valid) or not np.isfinite(estimate) or n_patients < 2:
        return float("nan")
    least = 2 / (len(valid) + 1)
    if any(source.variance for source in others):
        return _p_by_bisection(estimate, valid, n_patients, others, null, least)
    shift = 2 * ndtri(_share_below(valid, estimate))
    tail = ndtri(_share_below(valid, null)) - shift
    student = abs(tail) * np.sqrt((n_patients - 1) / n_patients)
    return float(np.clip(2 * stdtr(n_patients - 1, -student), least, 1.0))


def _p_by_bisection(
    estimate: float,
    samples: Floats,
    n_patients: int,
    others: Sequence[Source],
    null: float,
    least: float,
) -> float:
    smaller, larger = least, 1.0
    for _ in range(_BISECTIONS):
        middle = (smaller + larger) / 2
        low, high = interval(
            estimate, samples, n_patients=n_patients, others=others, confidence=1 - middle
        )
        if low <= null <= high:
            smaller = middle
        else:
            larger = middle
    return smaller


def _share_below(samples: Floats, value: float) -> float:
    """Share of samples below a value, ties as ½, kept off 0 and 1 by half a sample."""
    below = np.count_nonzero(samples < value) + np.count_nonzero(samples == value) / 2
    return (below + 0.5) / (len(samples) + 1)
