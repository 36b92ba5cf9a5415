"""Every figure that the experiments show: pure functions from tables and arrays to a `Figure`.

Accuracy (`roc`, `precision_recall`, `reliability`, `abstention`, `confusion`,
`log_odds_histogram`), images (`sample_sheet`, `explanation_sheet`), studies (`training_curves`,
`learning_curves`, `label_efficiency`, `forest`, `cost`), preparation (`preparation_stages`,
`counts`). `save_png` writes one to a file.

Matplotlib and seaborn take a second to import: they are, when the first figure is drawn.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgc_experiments.figures.accuracy import (
        abstention,
        confusion,
        log_odds_histogram,
        precision_recall,
        reliability,
        roc,
    )
    from sgc_experiments.figures.images import Explanation, explanation_sheet, sample_sheet
    from sgc_experiments.figures.preparation import counts, preparation_stages
    from sgc_experiments.figures.studies import (
        cost,
        forest,
        label_efficiency,
        learning_curves,
        readable,
        training_curves,
    )
    from sgc_experiments.figures.style import save_png
    from sgc_experiments.figures.tuning import (
        tuning_history,
        tuning_importance,
        tuning_parallel,
        tuning_pareto,
        tuning_slices,
    )

__all__ = [
    "Explanation",
    "abstention",
    "confusion",
    "cost",
    "counts",
    "explanation_sheet",
    "forest",
    "label_efficiency",
    "learning_curves",
    "log_odds_histogram",
    "precision_recall",
    "preparation_stages",
    "readable",
    "reliability",
    "roc",
    "sample_sheet",
    "save_png",
    "training_curves",
    "tuning_history",
    "tuning_importance",
    "tuning_parallel",
    "tuning_pareto",
    "tuning_slices",
]

_MODULES = ("accuracy", "images", "preparation", "studies", "style", "tuning")


def __getattr__(name: str) -> Any:
    """A figure by its name (PEP 562)."""
    if name in __all__:
        for module in _MODULES:
            found = getattr(import_module(f"{__name__}.{module}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
