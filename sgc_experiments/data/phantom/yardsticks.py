"""How hard is a phantom? Three yardsticks, none of them a model of this project.

- *latent*: the AUC of the latent malignancy m itself, the ceiling of every classifier.
- *trivial features*: brightness, variance, sizes and places, of the image and of the annotated box.
  They must tell little, or a classifier could succeed without looking at the lesion.
- *random forest*: on hand-made features measured at the known lesion (radial profile, edge
  sharpness, spiculation, contrast, texture): what classical image analysis gets out of it.

Forests are scored out of fold, with all of a patient's images in the same fold. Intervals are 95 %
percentile bootstraps over patients.
"""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
from scipy.ndimage import gaussian_filter1d
from scipy.stats import rankdata
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from sgc_experiments.data.phantom.inbreast_layout import RELEASE, SETTINGS, TRUTH
from sgc_experiments.errors import UserError

GATES = {
    "latent": (0.98, 1.0),
    "trivial, best single": (0.0, 0.68),
    "trivial, forest": (0.0, 0.68),
    "lesion, forest": (0.82, 0.92),
}
"""Bounds of the AUC. The last one holds for difficulty "standard" only."""

_ANGLES, _RADII = 96, 40
_REACH = 2.4
"""The polar view of a lesion ends at this many lesion radii."""


def yardsticks(release: Path, *, bootstrap: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Measure the yardsticks on a phantom release as `write_inbreast` returns it.

    Args:
        release: the release folder, or the one that holds it and `phantom_truth.csv`.
        bootstrap: resamples for the intervals.
        seed: of the forests, the folds and the bootstrap.

    Returns:
        One row per yardstick, with columns yardstick, auc, low, high (95 % interval), images,
        patients, gate_low, gate_high (NaN where no gate applies).

    Raises:
        UserError: `release` is not a phantom.
    """
    if (release / TRUTH).is_file():
        release = release / RELEASE
    truth_file = release.parent / TRUTH
    if not truth_file.is_file():
        raise UserError(
            f"{release} is not a phantom release: {TRUTH} is missing in it and beside it; "
            "make one with `python -m sgc_experiments phantom`"
        )
    truth = pd.read_csv(truth_file)
    trivial, lesion = _measure(release, truth)
    label = truth["malignant"].to_numpy()
    patient = truth["patient"].to_numpy()

    singles = {name: auc(label, trivial[name].to_numpy()) for name in trivial}
    best = max(singles, key=lambda name: abs(singles[name] - 0.5))
    sign = 1 if singles[best] >= 0.5 else -1
    scores = {
        "latent": truth["latent"].to_numpy(),
        "trivial, best single": sign * trivial[best].to_numpy(),
        "trivial, forest": _out_of_fold(trivial, label, patient, seed),
        "lesion, forest": _out_of_fold(lesion, label, patient, seed),
    }
    standard = json.loads((release.parent / SETTINGS).read_text())["difficulty"] == "standard"
    rows = []
    for name, score in scores.items():
        low, high = _interval(label, score, patient, bootstrap, seed)
        gate = GATES[name] if standard or name != "lesion, forest" else (np.nan, np.nan)
        rows.append(
            {
                "yardstick": f"{name}: {best}" if name == "trivial, best single" else name,
                "auc": auc(label, score),
                "low": low,
                "high": high,
                "images": len(truth),
                "patients": truth["patient"].nunique(),
                "gate_low": gate[0],
                "gate_high": gate[1],
            }
        )
    return pd.DataFrame(rows)


def format_yardsticks(table: pd.DataFrame) -> str:
    """One line per yardstick: AUC, interval, numbers, the gate and whether it is met."""
    lines = []
    for row in table.itertuples():
        gate = ""
        if not np.isnan(row.gate_low):
            met = row.gate_low <= row.auc <= row.gate_high
            gate = f"  gate {row.gate_low:.2f} to {row.gate_high:.2f}: {'met' if met else 'MISSED'}"
        lines.append(
            f"{row.yardstick:<40} AUC {row.auc:.3f} ({row.low:.3f} to {row.high:.3f}), "
            f"{row.images} images of {row.patients} patients{gate}"
        )
    return "\n".join(lines)


def auc(label: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve (Mann–Whitney, ties count half); NaN if a class is missing."""
    positive = label == 1
    n1, n0 = int(positive.sum()), int((~positive).sum())
    if n1 == 0 or n0 == 0:
        return float("nan")
    ranks = rankdata(score)
    return float((ranks[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def _interval(
    label: np.ndarray, score: np.ndarray, patient: np.ndarray, bootstrap: int, seed: int
) -> tuple[float, float]:
    """95 % percentile interval of the AUC over resampled patients."""
    rng = np.random.default_rng(seed)
    of_patient = [np.flatnonzero(patient == name) for name in np.unique(patient)]
    values = []
    for _ in range(bootstrap):
        drawn = rng.integers(len(of_patient), size=len(of_patient))
        index = np.concatenate([of_patient[i] for i in drawn])
        values.append(auc(label[index], score[index]))
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return float(low), float(high)


def _out_of_fold(
    features: pd.DataFrame, label: np.ndarray, patient: np.ndarray, seed: int
) -> np.ndarray:
    """A forest's probabilities for every image, from the folds that lack its patient."""
    forest = RandomForestClassifier(200, min_samples_leaf=3, random_state=seed)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    table = features.to_numpy()
    probabilities: np.ndarray = cross_val_predict(
        forest, table, label, groups=patient, cv=folds, method="predict_proba"
    )
    return probabilities[:, 1]


def _measure(release: Path, truth: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Trivial and lesion features of every image, a row each."""
    trivial, lesion = [], []
    for row in truth.itertuples():
        dataset = pydicom.dcmread(release / "AllDICOMs" / row.file_name)
        image = dataset.pixel_array.astype(np.float32) / 2**dataset.BitsStored
        box = np.array([row.x0, row.y0, row.x1, row.y1])
        trivial.append(_trivial_features(image, box))
        lesion.append(_lesion_features(image, box))
    return pd.DataFrame(trivial), pd.DataFrame(lesion)


def _trivial_features(image: np.ndarray, box: np.ndarray) -> dict[str, float]:
    height, width = image.shape
    breast = image[image > 0.01]
    x0, y0 = np.maximum(box[:2], 0).astype(int)
    x1, y1 = np.minimum(box[2:], (width, height)).astype(int)
    inside = image[y0:y1, x0:x1]
    return {
        "image mean": image.mean(),
        "breast area": breast.size,
        "breast mean": breast.mean(),
        "breast variance": breast.var(),
        "box width": box[2] - box[0],
        "box height": box[3] - box[1],
        "box area": (box[2] - box[0]) * (box[3] - box[1]),
        "box aspect": (box[2] - box[0]) / (box[3] - box[1]),
        "box distance to chest wall": min((x0 + x1) / 2, width - (x0 + x1) / 2),
        "box row": (y0 + y1) / 2,
        "lesion mean": inside.mean(),
        "lesion variance": inside.var(),
        "lesion maximum": inside.max(),
    }


def _lesion_features(image: np.ndarray, box: np.ndarray) -> dict[str, float]:
    """Shape, edge, spiculation, contrast and texture around the centre of the box."""
    centre = (float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2)
    radius = (box[2] - box[0] + box[3] - box[1]) / 4 / 1.3
    smooth = cv2.GaussianBlur(image, (0, 0), 0.05 * radius)
    reach = _REACH * radius
    side = 2 * int(np.ceil(reach)) + 3
    # Taken out first because this repeats the border where the lesion lies at the chest wall.
    patch = cv2.getRectSubPix(smooth, (side, side), centre)
    middle = (side / 2 - 0.5, side / 2 - 0.5)
    polar = cv2.warpPolar(patch, (_RADII, _ANGLES), middle, reach, cv2.WARP_POLAR_LINEAR)
    at = (np.arange(_RADII) + 0.5) * _REACH / _RADII
    features = {}
    features.update(_profile_features(polar, at))
    features.update(_edge_features(polar, at))
    features.update(_spiculation_features(polar, at))
    features.update(_region_features(smooth, centre, radius))
    return features


def _profile_features(polar: np.ndarray, at: np.ndarray) -> dict[str, float]:
    """Contrast and the mean radial profile, relative to the surroundings."""
    profile = polar.mean(axis=0)
    inner, outer = profile[at < 0.6].mean(), profile[at > 1.8].mean()
    contrast = inner - outer
    features = {
        "contrast": contrast,
        "contrast to noise": contrast / (polar[:, at > 1.8].std() + 1e-6),
        "inner deviation": polar[:, at < 0.6].std(),
        "outer deviation": polar[:, at > 1.8].std(),
    }
    for low in np.arange(0.6, 1.8, 0.2):
        ring = profile[(at >= low) & (at < low + 0.2)].mean()
        features[f"profile {low:.1f}"] = (ring - outer) / (abs(contrast) + 0.01)
    slope = np.diff(profile)
    features["steepest slope"] = slope.min() / (abs(contrast) + 0.01)
    features["steepest slope at"] = at[int(slope.argmin())]
    return features


def _edge_features(polar: np.ndarray, at: np.ndarray) -> dict[str, float]:
    """Where and how sharply brightness falls, angle by angle."""
    fall = -np.diff(cv2.GaussianBlur(polar, (0, 0), 1.0), axis=1)
    zone = (at[:-1] > 0.5) & (at[:-1] < 1.7)
    fall, place = fall[:, zone], at[:-1][zone]
    edge = place[fall.argmax(axis=1)]
    strength = fall.max(axis=1)
    spectrum = np.abs(np.fft.rfft(edge - edge.mean())) ** 2 / _ANGLES
    return {
        "edge radius": edge.mean(),
        "edge radius deviation": edge.std(),
        "edge radius spread": np.subtract(*np.percentile(edge, (75, 25))),
        "edge roughness": np.abs(np.diff(edge)).mean(),
        "edge harmonics 2-3": spectrum[2:4].sum(),
        "edge harmonics 4-12": spectrum[4:13].sum(),
        "edge strength": strength.mean(),
        "edge strength, median": np.median(strength),
        "edge strength variation": strength.std() / (strength.mean() + 1e-6),
    }


def _spiculation_features(polar: np.ndarray, at: np.ndarray) -> dict[str, float]:
    """Lines that run outwards: fine angular structure which persists along the radius."""
    fine = polar - gaussian_filter1d(polar, 4, axis=0, mode="wrap")
    along = np.abs(np.diff(polar, axis=1))
    across = np.abs(np.diff(polar, axis=0))
    features = {}
    for low, high in ((0.7, 1.1), (1.1, 1.5), (1.5, 2.0)):
        ring = (at >= low) & (at < high)
        column = fine[:, ring]
        features[f"angular deviation {low}"] = column.std()
        features[f"radial persistence {low}"] = column.mean(axis=1).std() / (column.std() + 1e-6)
        features[f"bright rays {low}"] = float((column.mean(axis=1) > 0.008).sum())
        features[f"gradient ratio {low}"] = across[:, ring].mean() / (
            along[:, ring[:-1]].mean() + 1e-6
        )
    return features


def _region_features(
    smooth: np.ndarray, centre: tuple[float, float], radius: float
) -> dict[str, float]:
    """Form of the bright region around the centre, and texture at two scales."""
    size = int(2 * 1.7 * radius)
    patch = cv2.getRectSubPix(smooth, (size, size), centre)
    scaled = cv2.normalize(patch, np.empty_like(patch), 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    _, bright = cv2.threshold(scaled, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    _, labels = cv2.connectedComponents(bright)
    middle = labels[size // 2, size // 2]
    region = (labels == middle).astype(np.uint8)
    contours, _ = cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    contour = max(contours, key=cv2.contourArea)
    area = cv2.contourArea(contour) + 1.0
    hull = cv2.contourArea(cv2.convexHull(contour)) + 1.0
    perimeter = cv2.arcLength(contour, True) + 1.0
    deviations = {}
    for scale in (0.05, 0.15):
        band = cv2.GaussianBlur(patch, (0, 0), scale * radius) - cv2.GaussianBlur(
            patch, (0, 0), 2 * scale * radius
        )
        deviations[f"texture {scale}"] = band.std()
    return {
        "region area": area / radius**2,
        "region solidity": area / hull,
        "region circularity": 4 * np.pi * area / perimeter**2,
        "region is bright": float(bright[size // 2, size // 2]),
        **deviations,
    }
