"""The table of a model's predictions: what every evaluation starts from, and nothing else does.

One row per image:

===============  ==========================================================================
image_id         text, unique (with `fold`: unique within the fold)
patient          text; the unit of resampling
exam             text, optional; default: the patient
laterality       "L", "R" or "", optional
view             "CC", "MLO" or "", optional
density          "1" … "4" or "", optional
label            class index; for two classes 1 is malignant
probability      posterior of class 1, in [0, 1] (two classes)
log_odds         its log p/(1 − p), optional; ranks images whose probability rounds to 0 or 1
standard_error   of the log-odds, optional
probability_<c>  posterior of class c, in the order of the class indices (more than two classes)
fold             optional; out-of-fold predictions of a cross-validation
===============  ==========================================================================

A mammogram is read by breast and by examination as well. A breast's score is the mean of its views'
log-odds, an examination's the greatest of its breasts'; it is positive if one of its parts is.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from sgc_experiments.errors import UserError
from sgc_experiments.metrics import ALL_ROWS, Floats, Rows

LEVELS = ("image", "breast", "exam")

_TEXT_COLUMNS = ("exam", "laterality", "view", "density")
_CLASS_PREFIX = "probability_"
# Posteriors come from float32 networks and may pass through a CSV file.
_TOLERANCE = 1e-3


def class_names(predictions: pd.DataFrame) -> tuple[str, ...]:
    """Names of the classes of a multi-class table in the order of their columns, () for two."""
    return tuple(
        column.removeprefix(_CLASS_PREFIX)
        for column in predictions.columns
        if column.startswith(_CLASS_PREFIX)
    )


def class_probabilities(predictions: pd.DataFrame) -> Floats:
    """Posterior of every class, shape (N, C), of a table with two or more classes."""
    names = class_names(predictions)
    if names:
        several: Floats = predictions[[_CLASS_PREFIX + name for name in names]].to_numpy(
            dtype=np.float64
        )
        return several
    positive = predictions["probability"].to_numpy(dtype=np.float64)
    return np.column_stack([1 - positive, positive])


def check_predictions(predictions: pd.DataFrame, source: str = "predictions") -> pd.DataFrame:
    """Check a table of predictions and fill its optional columns.

    Args:
        predictions: as in the head of this module.
        source: what the table is, for the message.

    Returns:
        A copy in the same order with a plain index and every column but `fold` present.

    Raises:
        UserError: no rows, a column is missing, an image twice, a value out of range.
    """
    multiclass = bool(class_names(predictions))
    required = ["image_id", "patient", "label"] + ([] if multiclass else ["probability"])
    missing = [column for column in required if column not in predictions.columns]
    if missing:
        raise UserError(
            f"{source}: no column {', '.join(missing)}; found "
            f"{', '.join(map(str, predictions.columns)) or 'none'}."
        )
    if predictions.empty:
        raise UserError(f"{source}: there is not a single image to evaluate.")
    frame = predictions.reset_index(drop=True)
    key = ["image_id", "fold"] if "fold" in frame.columns else ["image_id"]
    if twice := int(frame.duplicated(key).sum()):
        raise UserError(f"{source}: {twice} image(s) occur more than once; one row per image.")
    if frame[["patient", "label"]].isna().to_numpy().any():
        raise UserError(f"{source}: patient or label is missing in some rows.")
    frame["exam"] = frame.get("exam", frame["patient"])
    for column in _TEXT_COLUMNS:
        frame[column] = frame[column].fillna("").astype(str) if column in frame.columns else ""
    frame["standard_error"] = frame.get("standard_error", pd.Series(0.0, index=frame.index))
    return _checked_classes(frame, source) if multiclass else _checked_binary(frame, source)


def _checked_binary(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    if not frame["label"].isin([0, 1]).all():
        raise UserError(f"{source}: with a column probability, labels are 0 or 1.")
    probability = frame["probability"].to_numpy(dtype=np.float64)
    if not ((probability >= 0) & (probability <= 1)).all():
        raise UserError(f"{source}: probabilities must lie between 0 and 1, without gaps.")
    log_odds = logit(probability)
    if "log_odds" in frame.columns:
        log_odds = frame["log_odds"].to_numpy(dtype=np.float64)
        if not np.allclose(expit(log_odds), probability, rtol=0, atol=_TOLERANCE):
            raise UserError(f"{source}: log_odds is not the logit of probability in every row.")
    return frame.assign(label=frame["label"].astype(np.int64), log_odds=_finite(log_odds))


def _finite(log_odds: Floats) -> Floats:
    """Put infinite log-odds one nat beyond the finite ones, and beyond what a probability tells."""
    told = logit(1 - np.finfo(np.float64).eps)
    furthest = np.abs(log_odds[np.isfinite(log_odds)]).max(initial=told) + 1
    finite: Floats = np.clip(log_odds, -furthest, furthest)
    return finite


def _checked_classes(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    probabilities = class_probabilities(frame)
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise UserError(f"{source}: probabilities must lie between 0 and 1, without gaps.")
    if not np.allclose(probabilities.sum(axis=1), 1, rtol=0, atol=_TOLERANCE):
        raise UserError(f"{source}: the class probabilities of an image must sum to 1.")
    if not frame["label"].isin(range(probabilities.shape[1])).all():
        raise UserError(f"{source}: labels must be class indices 0 … {probabilities.shape[1] - 1}.")
    return frame.assign(label=frame["label"].astype(np.int64))


def one_vs_rest(predictions: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Split a multi-class table into one two-class table per class (class against all others)."""
    frame = check_predictions(predictions)
    plain = frame.drop(columns=[_CLASS_PREFIX + name for name in class_names(frame)])
    plain = plain.drop(columns="log_odds", errors="ignore")
    probabilities = class_probabilities(frame)
    return {
        name: plain.assign(
            label=(frame["label"] == c).astype(np.int64), probability=probabilities[:, c]
        )
        for c, name in enumerate(class_names(frame))
    }


def aggregate(predictions: pd.DataFrame, level: str) -> pd.DataFrame:
    """Turn predictions per image into predictions per breast or per examination.

    Args:
        predictions: two-class table.
        level: "image" (returned as it is, checked), "breast" or "exam".

    Returns:
        Table of the same columns, one row per breast or examination; `view` is empty and `density`
        kept where all parts agree. Views count as independent in `standard_error`.

    Raises:
        UserError: more than two classes, or "breast" without laterality.
    """
    if level not in LEVELS:
        raise ValueError(f"level is one of {', '.join(LEVELS)}, not {level!r}")
    frame = check_predictions(predictions)
    if level == "image":
        return frame
    if class_names(frame):
        raise UserError(f"Scores per {level} are defined for two classes only.")
    if level == "breast" and (frame["laterality"] == "").any():
        raise UserError("Scores per breast need the laterality (L or R) of every image.")
    folds = ["fold"] if "fold" in frame.columns else []
    frame["variance"] = frame["standard_error"] ** 2
    by_breast = frame.groupby([*folds, "patient", "exam", "laterality"], as_index=False)
    breasts = by_breast.agg(
        label=("label", "max"),
        log_odds=("log_odds", "mean"),
        standard_error=("variance", _error_of_mean),
        density=("density", _common),
    )
    if level == "breast":
        return _finished(breasts, breasts["exam"] + "-" + breasts["laterality"])
    # Sorted by score, the last breast of an examination is the one that speaks for it.
    by_exam = breasts.sort_values("log_odds", kind="stable").groupby(
        [*folds, "patient", "exam"], as_index=False
    )
    exams = by_exam.agg(
        label=("label", "max"),
        log_odds=("log_odds", "last"),
        standard_error=("standard_error", "last"),
        density=("density", _common),
    )
    return _finished(exams.assign(laterality=""), exams["exam"])


def _finished(frame: pd.DataFrame, image_id: pd.Series) -> pd.DataFrame:
    probability = expit(frame["log_odds"])
    return frame.assign(image_id=image_id, view="", probability=probability)


def _error_of_mean(variances: pd.Series) -> float:
    return float(np.sqrt(variances.sum()) / len(variances))


def _common(values: pd.Series) -> str:
    return values.iloc[0] if values.nunique() == 1 else ""


def each_once(predictions: pd.DataFrame) -> pd.DataFrame:
    """Keep one row of every image, which a repeated cross-validation predicts once per repeat."""
    return predictions.drop_duplicates(["patient", "image_id"])


def n_repeats(predictions: pd.DataFrame) -> float:
    """How many rows there are of every image, on average."""
    return len(predictions) / len(each_once(predictions))


def fold_rows(predictions: pd.DataFrame) -> Sequence[Rows]:
    """Return the rows of every fold, whose scores one model made; all rows without folds."""
    if "fold" not in predictions.columns:
        return ALL_ROWS
    return list(predictions.groupby("fold").indices.values())


def per_row(
    predictions: pd.DataFrame, by_fold: Mapping[object, Mapping[str, float]]
) -> dict[str, Floats]:
    """Spread the thresholds of every fold over the rows that the fold predicted.

    Raises:
        UserError: a fold of the predictions has no thresholds.
    """
    folds = predictions["fold"].tolist()
    if unknown := sorted({str(fold) for fold in folds if fold not in by_fold}):
        raise UserError(f"No validation predictions for fold(s) {', '.join(unknown)}.")
    names = next(iter(by_fold.values()))
    return {name: np.array([by_fold[fold][name] for fold in folds]) for name in names}
