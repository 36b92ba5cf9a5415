"""Entry point ``baseline``: several models on the same split, a nested run each, and compared.

A model that a broken-off command of the same configuration has finished is taken over.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sgc_experiments.command_line import parse
from sgc_experiments.config import BaselineConfig, TrainConfig, resolve_defaults
from sgc_experiments.data import ImageDataset
from sgc_experiments.experiments import side_by_side
from sgc_experiments.experiments.datasets import load_images
from sgc_experiments.experiments.models import check_model
from sgc_experiments.experiments.team import team
from sgc_experiments.experiments.train import announce, run_model, run_name, run_tags
from sgc_experiments.past_runs import PastRun, finished_runs
from sgc_experiments.provenance import commit
from sgc_experiments.resumption import key_of
from sgc_experiments.tracking import start_run
from sgc_experiments.training_settings import choose_device

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and fit the baselines."""
    config = parse(BaselineConfig, arguments)
    with team(config.processes, config.device):
        baseline(config)


def baseline(config: BaselineConfig) -> None:
    """Fit every model of ``config`` in a run below one that compares them.

    Raises:
        UserError: the data or a parameter does not allow it; the run is FAILED with the reason.
    """
    gpu = choose_device(config.device).type == "cuda"
    config = resolve_defaults(config, gpu=gpu)
    name = f"baseline-{config.dataset}-{config.input}{config.image_size}-seed{config.seed}"
    tags = {"entry_point": "baseline", "dataset": config.dataset}
    with start_run(name, tags, config=config) as run:
        announce(", ".join(config.models), config, gpu=gpu)
        run.log_config(config.model_dump())
        run.log_environment()
        for model in config.models:
            check_model(model)
        dataset = load_images(config)
        runs = [
            _fit(resolve_defaults(config.of(model), gpu=gpu), dataset) for model in config.models
        ]
        run.set_tags({key: runs[0].tags[key] for key in ("data_digest", "split_digest")})
        if len(runs) > 1:
            side_by_side.compare(
                run,
                side_by_side.contenders(runs),
                reference=config.models[0],
                n_bootstrap=config.bootstrap,
                seed=config.seed,
            )


def _fit(config: TrainConfig, dataset: ImageDataset) -> PastRun:
    """The finished run of one model: found, or fitted now."""
    # Another version of the code may give other numbers.
    tags = {"baseline_key": _key(config, dataset), "commit": commit()}
    for past in finished_runs(tags=tags):
        logger.info("%s: taken over from run %s", config.model, past.run_id)
        return past
    with start_run(run_name(config), run_tags(config) | tags, config=config, nested=True) as run:
        logger.info("%s", config.model)
        run.log_config(config.model_dump())
        run.log_environment()
        run_model(run, config, dataset)
    (finished,) = (past for past in finished_runs(tags=tags) if past.run_id == run.run_id)
    return finished


def _key(config: TrainConfig, dataset: ImageDataset) -> str:
    """A digest of everything that decides on the run of a model."""
    return key_of(config.deciding(), dataset.digest)
