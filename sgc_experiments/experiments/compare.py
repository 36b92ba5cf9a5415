"""Entry point ``compare``: finished runs that were tested on the same patients, side by side."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from sgc_experiments.command_line import parse
from sgc_experiments.config import CompareConfig
from sgc_experiments.errors import UserError
from sgc_experiments.experiments import side_by_side
from sgc_experiments.past_runs import PastRun, finished_runs
from sgc_experiments.tracking import start_run

# The refits of `tune` are compared where they are named: by default each stands for many trials.
_FITTED = ("train", "refit")


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and compare."""
    compare(parse(CompareConfig, arguments))


def compare(config: CompareConfig) -> None:
    """Compare finished runs in one MLflow run of its own.

    Raises:
        UserError: there are no such runs, or they were not tested on the same patients.
    """
    with start_run("compare", {"entry_point": "compare"}) as run:
        run.log_config(config.model_dump())
        runs = choose(finished_runs(config.experiment), config)
        models = side_by_side.contenders(runs)
        run.set_tags({"split_digest": models[0].run.tags["split_digest"]})
        side_by_side.compare(
            run,
            models,
            reference=config.reference,
            n_bootstrap=config.bootstrap,
            seed=config.seed,
        )


def choose(runs: Sequence[PastRun], config: CompareConfig) -> list[PastRun]:
    """Those of the finished runs that the configuration names, or all of `train` and `baseline`.

    Raises:
        UserError: a name or the beginning of a digest that no run has.
    """
    chosen = [run for run in runs if run.tags.get("entry_point") == "train"]
    if config.runs:
        runs = [run for run in runs if run.tags.get("entry_point") in _FITTED]
        known = set().union(*map(_called, runs))
        for name in config.runs:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}?" if close else "see the list in the MLflow UI."
                raise UserError(f"There is no finished run {name!r} of a model: {hint}")
        chosen = [run for run in runs if _called(run) & set(config.runs)]
    digests = sorted({run.tags["split_digest"] for run in chosen})
    if config.split:
        chosen = [run for run in chosen if run.tags["split_digest"].startswith(config.split)]
        if not chosen:
            there = ", ".join(digest[:12] for digest in digests) or "none"
            raise UserError(f"No finished run used split={config.split}; there are: {there}.")
    return chosen


def _called(run: PastRun) -> set[str]:
    """By what a run is named: its id, its name, and that without its departing parameters."""
    return {run.run_id, run.name, run.name.split(" ")[0]}
