"""A worker on a study whose trials only sleep: `-m tests.tune_worker URL TRIALS SECONDS NAME`.

It prints a line for every trial that it begins, so that a test knows when to kill or stop it.
"""

import signal
import sys
import time

from sgc_experiments.config import TuneConfig, resolve_tuning
from sgc_experiments.config.search_space import choose
from sgc_experiments.experiments.tune_study import TuningStudy


def main(url: str, trials: int, seconds: float, name: str) -> None:
    config = resolve_tuning(TuneConfig(trials=trials, lost_after=3), gpu=False)
    study = TuningStudy(
        config, url, "study", lambda trial: print("lost", trial.number, flush=True),
        worker=name,
    )  # fmt: skip

    def objective(trial):
        point = choose(config.space(), lambda name, d: study.suggest(trial, name, d))
        print("begun", trial.number, flush=True)
        time.sleep(seconds)
        auc = 0.9 - abs(point["log_snr_min"]) / 100
        trial.set_user_attr("val_auc", auc)
        return [auc]

    study.work(objective, lambda trial: print("done", trial.number, flush=True))


if __name__ == "__main__":
    # Ignored by what a shell starts in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
