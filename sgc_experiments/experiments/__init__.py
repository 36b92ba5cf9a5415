"""Entry points as recipes: each module runs one of them on a validated configuration."""

from sgc_experiments.config import PrepareConfig, TrainConfig

CONFIGS = {config.entry_point: config for config in (TrainConfig, PrepareConfig)}
