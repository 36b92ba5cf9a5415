import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from sgc_experiments.data.phantom.inbreast_layout import TRUTH, write_inbreast
from sgc_experiments.data.phantom.yardsticks import auc, format_yardsticks, yardsticks
from sgc_experiments.errors import UserError


def test_auc_agrees_with_scikit_learn_including_ties():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 200)
    score = rng.integers(0, 9, 200) + label
    assert auc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-12)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_inbreast(
        tmp_path_factory.mktemp("yardsticks") / "phantom",
        patients=120,
        seed=0,
        difficulty="standard",
        progress=False,
    )


def test_standard_phantom_passes_its_gate(release):
    """Latent ≥ .98, trivial features ≤ .68, a forest on lesion features between .82 and .92."""
    table = yardsticks(release, bootstrap=200)
    assert table["patients"].eq(120).all()
    assert table["images"].ge(240).all()
    assert (table["low"] <= table["auc"]).all()
    assert (table["auc"] <= table["high"]).all()
    measured = table.set_index("yardstick")["auc"]
    assert measured["latent"] >= 0.98
    assert measured[measured.index.str.startswith("trivial")].max() <= 0.68
    assert 0.82 <= measured["lesion, forest"] <= 0.92
    assert format_yardsticks(table).count(": met") == 4


@pytest.mark.slow
@pytest.mark.parametrize("difficulty", ["standard", "hard"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_full_size_phantoms_pass_their_gates(tmp_path, difficulty, seed):
    release = write_inbreast(
        tmp_path / "phantom", patients=360, seed=seed, difficulty=difficulty, progress=False
    )
    text = format_yardsticks(yardsticks(release, bootstrap=200))
    assert "MISSED" not in text
    assert text.count(": met") == (4 if difficulty == "standard" else 3)


def test_lesions_are_as_common_and_as_large_in_benign_patients(release):
    truth = pd.read_csv(release.parent / TRUTH)
    width = truth["x1"] - truth["x0"]
    by_label = width.groupby(truth["malignant"]).mean()
    assert width.gt(0).all()
    assert abs(by_label[1] - by_label[0]) < 3 * width.std() / np.sqrt(len(truth) / 4)


def test_a_folder_without_truth_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a phantom release"):
        yardsticks(tmp_path / "INbreast Release 1.0")


def test_the_release_may_be_named_by_its_folder_or_the_one_around_it(release, monkeypatch):
    class MeasuredError(Exception):
        pass

    def measure(folder, truth):
        raise MeasuredError(folder)

    monkeypatch.setattr("sgc_experiments.data.phantom.yardsticks._measure", measure)
    for folder in (release, release.parent):
        with pytest.raises(MeasuredError) as caught:
            yardsticks(folder)
        assert caught.value.args == (release,)
