"""Entry points as recipes: each module runs one of them on a validated configuration."""

from sgc_experiments.config import (
    BaselineConfig,
    CompareConfig,
    EvaluateConfig,
    FewshotConfig,
    PhantomConfig,
    PredictConfig,
    PrepareConfig,
    TrainConfig,
    TuneConfig,
    YardsticksConfig,
)

CONFIGS = {
    config.entry_point: config
    for config in (
        TrainConfig,
        BaselineConfig,
        TuneConfig,
        FewshotConfig,
        CompareConfig,
        EvaluateConfig,
        PredictConfig,
        PrepareConfig,
    )
}
COMMANDS = CONFIGS | {config.entry_point: config for config in (PhantomConfig, YardsticksConfig)}
"""With those that make no run."""
