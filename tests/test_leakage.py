"""A model that saw a test patient is caught, whatever its run says of itself."""

import pandas as pd
import pytest

from sgc_experiments.errors import UserError
from sgc_experiments.experiments.leakage import (
    check_predictions_match,
    check_subsets,
    manifest_digest,
)


@pytest.fixture
def manifest():
    subsets = ["train"] * 4 + ["validation"] * 4 + ["test"] * 4
    return pd.DataFrame(
        {
            "image_id": [f"img-{i:02d}" for i in range(12)],
            "patient": [f"pat-{i // 2}" for i in range(12)],
            "label": [i // 2 % 2 for i in range(12)],
            "subset": subsets,
        }
    )


def _predictions(manifest):
    shown = manifest[manifest["subset"] != "train"]
    return shown.assign(probability=0.5).sample(frac=1, random_state=0)


def _leaking(manifest):
    """One of the two images of the last test patient is trained on."""
    return manifest.assign(subset=[*manifest["subset"][:-1], "train"])


def _check(predictions, manifest, digest=None):
    check_predictions_match(predictions, manifest, digest or manifest_digest(manifest), "resnet18")


def test_an_honest_run_passes_in_any_order_of_rows(manifest):
    check_subsets(manifest)
    _check(_predictions(manifest), manifest)


def test_a_patient_in_training_and_test_is_caught(manifest):
    leaking = _leaking(manifest)
    with pytest.raises(UserError, match=r"1 patient\(s\) in two subsets"):
        check_subsets(leaking)
    with pytest.raises(UserError, match=r"split of resnet18 has 1 patient"):
        _check(_predictions(leaking), leaking)


def test_another_manifest_under_the_same_digest_is_caught(manifest):
    swapped = manifest.assign(subset=manifest["subset"].replace({"train": "test", "test": "train"}))
    with pytest.raises(UserError, match="the split that it stored is another one"):
        _check(_predictions(swapped), swapped, manifest_digest(manifest))


@pytest.mark.parametrize("change", ["fewer", "more", "other patient", "other label"])
def test_predictions_of_other_images_are_caught(manifest, change):
    predictions = _predictions(manifest)
    if change == "fewer":
        predictions = predictions.iloc[1:]
    elif change == "more":
        predictions = pd.concat([predictions, predictions.iloc[:1]])
    elif change == "other patient":
        predictions = predictions.replace({"patient": {"pat-5": "pat-0"}})
    else:
        predictions = predictions.assign(label=1 - predictions["label"])
    with pytest.raises(UserError, match=r"resnet18 was not evaluated on the \w+ images"):
        _check(predictions, manifest)


def test_folds_are_checked_one_by_one(manifest):
    turned = manifest["subset"].map({"train": "test", "test": "validation", "validation": "train"})
    folds = pd.concat([manifest.assign(fold="1"), manifest.assign(fold="2", subset=turned)])
    _check(_predictions(folds), folds)
    with pytest.raises(UserError, match="of which fold"):
        _check(_predictions(folds).drop(columns="fold"), folds)
    with pytest.raises(UserError, match=r"1 patient\(s\) in two subsets"):
        check_subsets(pd.concat([folds, _leaking(manifest).assign(fold="3")]))
    mixed_up = _predictions(folds).replace({"fold": {"1": "2", "2": "1"}})
    with pytest.raises(UserError, match="was not evaluated"):
        _check(mixed_up, folds)
