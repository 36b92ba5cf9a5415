"""Simulated scores with a known AUC, in patients whose images resemble each other."""

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import norm


def separation(auc: float) -> float:
    """Distance between two unit normals whose AUC is `auc`: AUC = Φ(μ/√2)."""
    return float(np.sqrt(2) * norm.ppf(auc))


def simulate(
    n_patients: int,
    *,
    auc: float = 0.8,
    correlation: float = 0.6,
    images: int = 4,
    seed: int = 0,
    model_seed: int = 0,
) -> pd.DataFrame:
    """Predictions for patients with `images` images each (both breasts, both views in turn).

    A patient is malignant or benign as a whole, so that every pair of a positive and a negative
    image joins two patients and the expected AUC is exactly `auc`. `seed` decides the patients and
    what all models see alike, `model_seed` the error of one model.
    """
    patients = np.random.default_rng(seed)
    label = patients.random(n_patients) < 0.4
    label[:2] = False, True
    effect = patients.normal(size=n_patients)
    density = patients.integers(1, 5, size=n_patients)
    own = np.random.default_rng([seed, model_seed]).normal(size=(n_patients, images))
    mu = separation(auc)
    score = mu * label[:, None] + np.sqrt(correlation) * effect[:, None]
    score = (score + np.sqrt(1 - correlation) * own).ravel()
    who = np.repeat(np.arange(n_patients), images)
    which = np.tile(np.arange(images), n_patients)
    # For two unit normals a distance mu apart, this is the exact posterior at prevalence 0.4.
    log_odds = mu * score - mu**2 / 2 + np.log(0.4 / 0.6)
    return pd.DataFrame(
        {
            "image_id": [f"img-{p}-{k}" for p, k in zip(who, which, strict=True)],
            "patient": [f"pat-{p}" for p in who],
            "exam": [f"exam-{p}" for p in who],
            "laterality": np.array(["L", "R"])[which // 2 % 2],
            "view": np.array(["CC", "MLO"])[which % 2],
            "density": density[who].astype(str),
            "label": label[who].astype(int),
            "log_odds": log_odds,
            "probability": expit(log_odds),
            "standard_error": 0.2,
        }
    )
