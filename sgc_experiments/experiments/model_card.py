"""The markdown that stands with a run and with a registered model: what it is, and its limits."""

from __future__ import annotations

import pandas as pd

from sgc_experiments.config import GENERATIVE_MODEL, TrainConfig
from sgc_experiments.data.splits import SUBSETS
from sgc_experiments.experiments.datasets import Data
from sgc_experiments.intervals import interval_text, limits_text

_LABELS = {
    "phantom": "Synthetic mammograms (the phantom); the label is the simulated malignancy of the "
    "lesion.",
    "inbreast": "INbreast, full-field digital mammograms. **BI-RADS caveat**: malignant means "
    "BI-RADS 4 or higher, a reader's opinion, not pathology.",
    "cbis_ddsm": "CBIS-DDSM, digitised film; the label is biopsy-proven pathology. There are no "
    "normal cases.",
    "table": "A table of the user's own images; the label is as given there.",
    "vindr_mammo": "VinDr-Mammo, full-field digital mammograms. **BI-RADS caveat**: malignant "
    "means BI-RADS 4-5, readers' opinion, not pathology.",
}
_INPUTS = {
    "roi": "It sees a crop around a lesion that someone has found: it does not find lesions, and "
    "images without one were left out.",
    "whole": "It sees the whole breast at {size} px, where small lesions and calcifications may be "
    "less than a pixel.",
}
_LEAST_PATIENTS = 10  # below, a subgroup's AUC says nothing
_HEADLINE = {
    "auc": "AUC",
    "macro_auc": "macro AUC (each class against all others)",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity_at_90_specificity": "sensitivity at 90 % specificity",
    "brier": "Brier score",
    "ece": "expected calibration error",
}


def model_card(config: TrainConfig, data: Data, report: pd.DataFrame) -> str:
    """Describe a fitted model.

    Args:
        config: the resolved configuration.
        data: the dataset and split.
        report: of the test images, by ``evaluation.evaluation_report``.
    """
    kind = "Score-based generative classifier" if config.model == GENERATIVE_MODEL else config.model
    sizes = "; ".join(
        f"{subset} {data.n_patients(subset)} patients, {len(data.rows(subset))} images"
        for subset in SUBSETS
    )
    images = report[report["level"] == "image"]
    whole = images[images["group"] == "all"]
    return "\n\n".join(
        [
            f"**{kind}** on **{config.dataset}** ({config.input}, {config.image_size} px)"
            f"{_headline(whole)}",
            "**Intended use**: research, not for diagnosis. Not validated for screening, triage "
            "or any other clinical decision.",
            f"**Training data**: {_LABELS[config.dataset]} Classes in training: {_shares(data)}.",
            f"**Split** by patient (digest `{data.split.digest[:12]}`): {sizes}; "
            f"{len(data.dataset.quarantine)} images left out, see `quarantine.csv`. Test was read "
            "once.",
            "**Results** on test, intervals of 95 % by patient-clustered bootstrap:",
            "\n".join(metric_table(whole)),
            f"**Calibration**: temperature and offset were fitted on validation, thresholds chosen "
            f"there.{_calibration(whole)} Probabilities hold for the prevalence in training.",
            "**Known failure modes**:",
            "\n".join(f"- {text}" for text in _failures(config, images)),
        ]
    )


def _headline(whole: pd.DataFrame) -> str:
    """The AUC: the UI shows the first lines of a card, and the rest on demand."""
    auc = whole[whole["metric"].isin(["auc", "macro_auc"])]
    if auc.empty:
        return ""
    row = auc.iloc[0]
    name = _HEADLINE[row["metric"]]
    return f": {name} on test {interval_text(row)}"


def _calibration(whole: pd.DataFrame) -> str:
    rows = whole.set_index("metric")
    if "ece" not in rows.index:
        return ""
    ece = rows.loc["ece"]
    return (
        f" The expected calibration error on test is {ece['value']:.3f} "
        f"({ece['low']:.3f} to {ece['high']:.3f})."
    )


def _failures(config: TrainConfig, images: pd.DataFrame) -> list[str]:
    """Limits that hold for every such model, and what was measured of this one."""
    limits = [
        "Fitted on one source of images: other scanners, populations and crops are untested.",
        _INPUTS[config.input].format(size=config.image_size),
    ]
    rows = images[images["group"] == "all"].set_index("metric")
    if "sensitivity_at_90_specificity" in rows.index:
        missed = 1 - rows.loc["sensitivity_at_90_specificity", "value"]
        limits.append(f"At 90 % specificity it misses {missed:.0%} of the positive test images.")
    parts = images[
        (images["metric"] == "auc")
        & (images["group"] != "all")
        & (images["n_patients"] >= _LEAST_PATIENTS)
        & images["value"].notna()
    ]
    if len(parts) > 1:
        worst = parts.loc[parts["value"].idxmin()]
        limits.append(
            f"Of the subgroups it is weakest on {worst['group']}: AUC {worst['value']:.3f} "
            f"({worst['low']:.3f} to {worst['high']:.3f}; {worst['n_images']:.0f} images). "
            "See `test_metrics.csv`."
        )
    return limits


def _shares(data: Data) -> str:
    shares = zip(data.dataset.classes, data.prevalence("train"), strict=True)
    return ", ".join(f"{name} {share:.1%}" for name, share in shares)


def metric_table(metrics: pd.DataFrame) -> list[str]:
    """The headline metrics, beside those of always answering the commonest class, in markdown."""
    rows = metrics.set_index("metric")
    lines = ["| test metric | value | 95 % interval | majority class |", "|---|---|---|---|"]
    for metric, name in _HEADLINE.items():
        if metric not in rows.index:
            continue
        row = rows.loc[metric]
        cells = (f"{row['value']:.3f}", limits_text(row), f"{row['majority_class']:.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines
