"""``init_from``: the generative classifier starts from the weights of a registered one."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.errors import UserError
from sgc_experiments.experiments.models import load_classifier
from sgc_experiments.model_registry import download_classifier, pinned
from sgc_experiments.tracking import TrackedRun


def start_from_registered(run: TrackedRun, uri: str, classifier: ScoreBasedClassifier) -> None:
    """Let a classifier start from a registered one's weights, and record which.

    Raises:
        UserError: there is no such model, or its network has another shape.
    """
    exact = pinned(uri)
    with tempfile.TemporaryDirectory() as scratch:
        folder = download_classifier(exact, Path(scratch))
        other = load_classifier(folder)
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if not isinstance(other, ScoreBasedClassifier):
        raise UserError(f"init_from={uri} is no generative classifier, whose weights sgc needs.")
    classifier.start_from(other)
    run.set_tags({"init_from": exact, "init_digest": digest})
