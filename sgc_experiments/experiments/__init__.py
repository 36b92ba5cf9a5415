"""Entry points as recipes: each module runs one of them on a validated configuration."""

from sgc_experiments.config import BaselineConfig, CompareConfig, PrepareConfig, TrainConfig

CONFIGS = {
    config.entry_point: config
    for config in (TrainConfig, BaselineConfig, CompareConfig, PrepareConfig)
}
