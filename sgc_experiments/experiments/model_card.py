"""The markdown that stands with a run and with a registered model: what it is, and its limits."""

from __future__ import annotations

import pandas as pd

from sgc_experiments.config import GENERATIVE_MODEL, TrainConfig
from sgc_experiments.experiments.datasets import SUBSETS, Data

_LABELS = {
    "phantom": "Synthetic mammograms; the label is the simulated malignancy of the lesion.",
    "inbreast": "INbreast; malignant means BI-RADS 4 or higher, a reader's opinion, not pathology.",
    "cbis_ddsm": "CBIS-DDSM; the label is biopsy-proven pathology. There are no normal cases.",
    "table": "A table of the user's own images; the label is as given there.",
    "vindr_mammo": "VinDr-Mammo; malignant means BI-RADS 4-5, readers' opinion, not pathology.",
}
_HEADLINE = {
    "auc": "AUC",
    "macro_auc": "macro AUC (each class against all others)",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity_at_90_specificity": "sensitivity at 90 % specificity",
    "brier": "Brier score",
    "ece": "expected calibration error",
}


def model_card(config: TrainConfig, data: Data, metrics: pd.DataFrame) -> str:
    """Describe a fitted model.

    Args:
        config: the resolved configuration.
        data: the dataset and split.
        metrics: test metrics, one row each with ``metric``, ``value``, ``low``, ``high``.
    """
    kind = "score-based generative classifier" if config.model == GENERATIVE_MODEL else config.model
    sizes = ", ".join(
        f"{subset} {data.n_patients(subset)} patients / {len(data.rows(subset))} images"
        for subset in SUBSETS
    )
    return "\n".join(
        [
            f"**{kind}** on **{config.dataset}** ({config.input}, {config.image_size} px)",
            "",
            "*For research, not for diagnosis.*",
            "",
            f"- Data: {_LABELS[config.dataset]}",
            f"- Split by patient: {sizes} (digest `{data.split.digest[:12]}`); "
            f"{len(data.dataset.quarantine)} images left out, see `quarantine.csv`.",
            f"- Classes in training: {_shares(data)}. Probabilities hold for that prevalence.",
            "- Temperature, offset and thresholds were fitted on validation; test was read once.",
            "",
            *metric_table(metrics),
            "",
            "Intervals: 95 %, patient-clustered bootstrap. Known limits: fitted on one source of "
            "images; other scanners, populations and crops are untested.",
        ]
    )


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
        interval = f"{row['low']:.3f} to {row['high']:.3f}"
        lines.append(f"| {name} | {row['value']:.3f} | {interval} | {row['majority_class']:.3f} |")
    return lines
