"""Every parameter of every entry point: its name, type, bounds, default and help text, once.

How they are given is the matter of ``command_line.py``. The resolved object is logged with the run
under the prefix ``config.``.
"""

from sgc_experiments.config.compare import CompareConfig
from sgc_experiments.config.data import DataConfig, PhantomConfig, PrepareConfig, YardsticksConfig
from sgc_experiments.config.fewshot import FewshotConfig
from sgc_experiments.config.fit import (
    BaselineConfig,
    FitConfig,
    TrainConfig,
    departures,
    resolve_defaults,
)
from sgc_experiments.config.tune import TuneConfig, resolve_tuning
from sgc_experiments.config.types import AUTO, GENERATIVE_MODEL, settled
from sgc_experiments.config.use import EvaluateConfig, PredictConfig

__all__ = [
    "AUTO",
    "GENERATIVE_MODEL",
    "BaselineConfig",
    "CompareConfig",
    "DataConfig",
    "EvaluateConfig",
    "FewshotConfig",
    "FitConfig",
    "PhantomConfig",
    "PredictConfig",
    "PrepareConfig",
    "TrainConfig",
    "TuneConfig",
    "YardsticksConfig",
    "departures",
    "resolve_defaults",
    "resolve_tuning",
    "settled",
]
