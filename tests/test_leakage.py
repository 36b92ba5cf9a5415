"""A model that saw a test patient is caught, whatever its run says of itself."""

from types import SimpleNamespace

import mlflow
import pandas as pd
import pytest

from sgc_experiments.errors import UserError
from sgc_experiments.experiments.leakage import (
    Seen,
    check_predictions_match,
    check_start,
    check_subsets,
    log_nameless,
    manifest_digest,
    seen_by,
)
from sgc_experiments.past_runs import read_run


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


@pytest.fixture
def recorded(workspace, manifest):
    """Records a run with the manifest's split and other patients, in a store of its own."""
    mlflow.set_tracking_uri(workspace.tracking_uri)

    def record(prefix, *, unlabelled=None, **tags):
        named = manifest.assign(patient=prefix + manifest["patient"])
        with mlflow.start_run() as run:
            mlflow.log_text(named.to_csv(index=False), "split.csv")
            if unlabelled:
                mlflow.log_text(pd.DataFrame({"patient": unlabelled}).to_csv(), "unlabelled.csv")
                tags |= {"unlabelled_digest": "d"}
            mlflow.set_tags(tags)
        return run.info.run_id

    return record


def test_a_model_has_seen_whom_its_own_run_and_those_before_it_recorded(recorded):
    first = recorded("a-", unlabelled=["x-1", "", "", "x-2"])
    second = recorded("b-", init_from="models:/sgc-phantom/1", init_run_id=first)
    third = recorded("c-", init_from="models:/sgc-phantom/2", init_run_id=second)
    seen = seen_by(read_run(third))
    trained = {f"{run}-pat-{i}" for run in "abc" for i in (0, 1)}
    assert seen.trained_on == trained | {"x-1", "x-2"}
    assert seen.validated_on == {f"{run}-pat-{i}" for run in "abc" for i in (2, 3)}
    assert seen.nameless == 2


def test_an_unknown_origin_is_refused(recorded):
    lost = recorded("a-", init_from="models:/sgc-phantom/7", init_run_id="0" * 32)
    of_before = recorded("a-", init_from="models:/sgc-phantom/7")
    for run_id in (lost, of_before):
        with pytest.raises(UserError, match="models:/sgc-phantom/7 is not in this tracking store"):
            seen_by(read_run(run_id))


@pytest.mark.parametrize(
    ("trained", "validated", "judged_on"),
    [("0", "2", 0), ("01", "23", 0), ("2", "", 1), ("04", "25", 2), ("", "4", 1), ("24", "4", 2)],
)
def test_weights_may_not_know_whom_the_new_model_is_judged_on(
    manifest, trained, validated, judged_on
):
    """Patients 0 and 1 are in train, 2 and 3 in validation, 4 and 5 in test."""
    seen = Seen(*(frozenset(f"pat-{i}" for i in who) for who in (trained, validated)), 0)
    if not judged_on:
        check_start(seen, manifest, "init_from=m")
    else:
        with pytest.raises(UserError, match=rf"init_from=m has seen {judged_on} patient\(s\)"):
            check_start(seen, manifest, "init_from=m")


@pytest.mark.parametrize("nameless", [0, 3])
def test_it_is_said_where_nobody_knows_whom_a_model_has_seen(caplog, nameless):
    tags = {}
    seen = Seen(frozenset(), frozenset(), nameless)
    log_nameless(SimpleNamespace(set_tags=tags.update), seen, "models:/m/1")
    assert tags == ({"n_seen_images_of_unknown_patients": 3} if nameless else {})
    assert ("models:/m/1 has learnt from 3 image(s) of a folder" in caplog.text) == bool(nameless)
