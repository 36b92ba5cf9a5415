"""Entry points as recipes: each module runs one of them on a validated configuration."""

from sgc_experiments.config import TrainConfig

CONFIGS = {TrainConfig.entry_point: TrainConfig}
