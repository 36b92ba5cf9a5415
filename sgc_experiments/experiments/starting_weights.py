"""``init_from``: the generative classifier starts from the weights of a registered one.

The weights know the patients of the model that they come from, so that nobody may be judged on
those.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import pandas as pd

from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.errors import UserError
from sgc_experiments.experiments.leakage import Seen, check_start, log_nameless, seen_by
from sgc_experiments.experiments.models import load_classifier
from sgc_experiments.registered_models import (
    download_model,
    pinned,
    run_id_of,
    run_that_fitted,
)
from sgc_experiments.tracking import TrackedRun


def start_from_registered(
    run: TrackedRun, uri: str, classifier: ScoreBasedClassifier, manifest: pd.DataFrame
) -> None:
    """Let a classifier start from a registered one's weights, and record which.

    Args:
        run: where to record it.
        uri: of the registered one.
        classifier: to be started.
        manifest: the split that it is about to be fitted on.

    Raises:
        UserError: there is no such model, its network has another shape, or it has seen patients
            that the classifier would be judged on.
    """
    exact = pinned(uri)
    seen = seen_by_registered(exact)
    check_start(seen, manifest, f"init_from={uri}")
    log_nameless(run, seen, f"init_from={uri}")
    with tempfile.TemporaryDirectory() as scratch:
        folder, run_id = download_model(exact, Path(scratch))
        other = load_classifier(folder)
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if not isinstance(other, ScoreBasedClassifier):
        raise UserError(f"init_from={uri} is no generative classifier, whose weights sgc needs.")
    classifier.start_from(other)
    # The version may be deleted from the registry; the run tells on whom the weights were fitted.
    run.set_tags({"init_from": exact, "init_run_id": run_id, "init_digest": digest})


def seen_by_registered(uri: str) -> Seen:
    """Whom a registered model has seen.

    Raises:
        UserError: there is no such model, or its origin is not known.
    """
    exact = pinned(uri)
    return seen_by(run_that_fitted(run_id_of(exact), exact))
