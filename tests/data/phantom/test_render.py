import cv2
import numpy as np
import pytest

from sgc_experiments.data.phantom.lesions import draw_calcifications, draw_mass
from sgc_experiments.data.phantom.render import is_malignant, render_patient
from sgc_experiments.errors import UserError


@pytest.fixture
def restore_threads():
    threads = cv2.getNumThreads()
    yield
    cv2.setNumThreads(threads)


def test_a_patient_does_not_depend_on_the_others_or_on_threads(restore_threads):
    cv2.setNumThreads(1)
    alone = render_patient(7, seed=3, difficulty="standard")
    cv2.setNumThreads(4)
    for other in (0, 6):
        render_patient(other, seed=3, difficulty="hard")
    again = render_patient(7, seed=3, difficulty="standard")
    assert len(alone) == len(again)
    for a, b in zip(alone, again, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)
        np.testing.assert_array_equal(a.outline, b.outline)


def test_seed_and_patient_change_the_image():
    first = render_patient(0, seed=0, difficulty="standard")[0]
    for other in (
        render_patient(0, seed=1, difficulty="standard")[0],
        render_patient(1, seed=0, difficulty="standard")[0],
    ):
        assert (first.pixels != other.pixels).mean() > 0.1


def test_views_of_a_patient_share_what_leaks():
    views = [
        view for patient in range(12) for view in render_patient(patient, seed=0, difficulty="hard")
    ]
    assert {view.laterality for view in views} == {"L", "R"}
    assert {view.view for view in views} == {"CC", "MLO"}
    assert {view.kind for view in views} == {"mass", "calcification"}
    for patient in range(12):
        own = [view for view in views if view.patient == patient]
        assert len(own) in (2, 4)
        assert len({(v.malignant, v.latent, v.density, v.kind) for v in own}) == 1
    assert {len([v for v in views if v.patient == p]) for p in range(12)} == {2, 4}


def test_image_is_a_breast_before_air():
    for view in render_patient(4, seed=0, difficulty="standard"):
        assert view.pixels.dtype == np.uint16
        assert view.pixels.max() <= 4095
        chest_wall = view.pixels[:, 0] if view.laterality == "L" else view.pixels[:, -1]
        far_side = view.pixels[:, -1] if view.laterality == "L" else view.pixels[:, 0]
        assert (chest_wall > 0).mean() > 0.6
        assert (far_side == 0).all()
        # One breast, no holes.
        count, _ = cv2.connectedComponents((view.pixels > 0).astype(np.uint8))
        assert count == 2
        x, y = view.outline.mean(axis=0).round().astype(int)
        assert view.pixels[y, x] > 0
        radius_mm = np.ptp(view.outline, axis=0).mean() / 2 * view.spacing_mm
        assert 5 < radius_mm < 15


def test_two_of_five_patients_are_malignant_whatever_their_number():
    labels = [is_malignant(patient, seed=11) for patient in range(1000)]
    assert sum(labels) == 400
    for start in range(0, 1000, 5):
        assert sum(labels[start : start + 5]) == 2
    assert labels[:5] * 200 != labels  # not a pattern that repeats


def test_masses_differ_in_shape_but_not_in_size_or_energy():
    radius = 20.0
    energy, roughness = {}, {}
    for m in (0.1, 0.9):
        masses = [draw_mass(m, radius, np.random.default_rng(seed)) for seed in range(40)]
        energy[m] = np.array([(mass.patch**2).sum() for mass in masses])
        rims = []
        for mass in masses:
            contours, _ = cv2.findContours(
                (mass.patch > 0.35).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
            )
            rim = max(contours, key=len)
            rims.append(cv2.arcLength(rim, True) ** 2 / (4 * np.pi * cv2.contourArea(rim)))
        roughness[m] = np.median(rims)
    np.testing.assert_allclose(energy[0.1], 0.6 * np.pi * radius**2, rtol=1e-3)
    np.testing.assert_allclose(energy[0.9], 0.6 * np.pi * radius**2, rtol=1e-3)
    assert roughness[0.1] < 1.5 < 2.5 < roughness[0.9]


def test_calcifications_multiply_with_malignancy():
    def specks(m: float) -> float:
        counts = []
        for seed in range(30):
            patch = draw_calcifications(m, 60.0, 0.1, np.random.default_rng(seed)).patch
            counts.append(cv2.connectedComponents((patch > 0.1).astype(np.uint8))[0] - 1)
        return float(np.mean(counts))

    # 4..7 specks and 14 m more, less those that touch.
    assert 4 < specks(0.05) < 8
    assert specks(0.9) > 1.5 * specks(0.05)


def test_some_lesions_are_cut_by_the_image():
    views = [v for p in (4, 13) for v in render_patient(p, seed=0, difficulty="standard")]
    for view in views:
        cut = view.outline[:, 0].min() < 0 or view.outline[:, 0].max() > view.pixels.shape[1] - 1
        assert cut == (view.view == "CC")


def test_unknown_difficulty_is_a_users_mistake():
    with pytest.raises(UserError, match=r"difficulty='easy'.*standard, hard"):
        render_patient(0, seed=0, difficulty="easy")
