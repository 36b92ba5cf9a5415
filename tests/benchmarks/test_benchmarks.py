"""Every benchmark ends in one line of JSON with its fields; ratios hold with wide margins.

Tiny settings, whose figures mean nothing; absolute times are never compared.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import (
    classification_cost,
    component_ablation,
    explanations,
    hardware_limit,
    ingest,
    likelihood_accuracy,
    scaling,
    semi_supervised,
    startup,
    training_speed,
)
from benchmarks.crops import _windows
from benchmarks.report import json_line

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _cache(cache, monkeypatch):
    monkeypatch.setenv("SGC_CACHE_DIR", str(cache))


def _fields(result) -> set[str]:
    return set(json.loads(json_line(result)))


def test_a_benchmark_is_a_command_with_a_quick_form():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.startup", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "--quick" in done.stdout


def test_classification_costs_a_fraction_of_the_papers():
    size = classification_cost.Size(40, 32, "steps:30", images=4, batch=4)
    result = classification_cost.measure(size)
    assert _fields(result) == {
        "speedup_vs_paper", "auc", "auc_paper", "evaluations_per_image", "auc_gap_to_128",
    }  # fmt: skip
    assert result["evaluations_per_image"] == 8
    assert result["speedup_vs_paper"] > 10


def test_training_speed_bounds_the_recipes_time(capsys):
    size = training_speed.Size(40, 32, "steps:40", target=0.0, look_every=5, patience=1)
    result = training_speed.measure(size)
    assert _fields(result) == {"speedup_vs_paper", "speedup_is_lower_bound"}
    assert result["speedup_vs_paper"] > 0
    assert result["speedup_is_lower_bound"] is False


def test_training_speed_says_when_the_recipe_was_stopped(monkeypatch):
    size = training_speed.Size(40, 32, "steps:5", target=0.0, look_every=5, patience=2)
    # The recipe is held to an AUC that nobody reaches.
    published = training_speed._published
    monkeypatch.setattr(
        training_speed, "_published",
        lambda size, crops, limit: published(size._replace(target=1.1), crops, limit),
    )  # fmt: skip
    result = training_speed.measure(size)
    assert result["speedup_is_lower_bound"] is True
    assert result["speedup_vs_paper"] >= 2


def test_fixed_steps_are_close_to_the_adaptive_solver():
    size = likelihood_accuracy.Size(40, 32, "steps:10", images=1, steps=(12,))
    result = likelihood_accuracy.measure(size)
    assert _fields(result) == {"bits_per_dim_error", "evaluation_ratio"}
    assert result["bits_per_dim_error"] < 0.02
    assert result["evaluation_ratio"] < 0.3


def test_the_network_comes_near_the_matrix_product():
    size = hardware_limit.Size(48, matrix=512, rounds=3, evaluations=64, training_steps=4)
    result = hardware_limit.measure(size)
    assert _fields(result) == {"forward_fraction", "training_fraction"}
    assert result["forward_fraction"] > 0.15
    assert result["training_fraction"] > 0.1


def test_ingest_outruns_the_plain_loop():
    result = ingest.measure(ingest.Size(files=2, height=1664, loaded=(40,)))
    assert _fields(result) == {"speedup_per_core", "peak_rss_mb"}
    assert result["speedup_per_core"] > 1.5
    assert 50 < result["peak_rss_mb"] < 1500


def test_scaling_fits_exponents_and_draws_them(tmp_path):
    figure = tmp_path / "scaling.png"
    result = scaling.measure(scaling.Size((64, 128), (2, 4), (256, 1024)), figure)
    names = ("resolution", "classes", "images")
    assert _fields(result) == {f"{n}{kind}_exponent" for n in names for kind in ("", "_memory")}
    assert 1 < result["resolution_exponent"] < 3
    assert result["images_memory_exponent"] < 0.3
    assert figure.stat().st_size > 5000


def test_exponents_of_a_power_law_are_found():
    values = (1, 2, 4, 8)
    assert scaling.exponent(values, [3 * v**1.5 for v in values]) == pytest.approx(1.5)


def test_help_is_quick_beside_the_imports():
    result = startup.measure(startup.QUICK)
    assert _fields(result) == {"help_seconds", "overhead_seconds"}
    assert result["help_seconds"] < result["overhead_seconds"] + 5


def test_a_result_is_one_line_of_valid_json():
    line = json_line({"a": float("nan"), "b": 1.23456, "c": True, "d": 8})
    assert json.loads(line) == {"a": None, "b": 1.235, "c": True, "d": 8}
    assert "\n" not in line


def test_the_component_ablation_tells_its_parts_apart():
    parts, rivals = ("reference", "two_levels", "resnet10t"), ("reference", "resnet10t")
    result = component_ablation.measure(
        component_ablation.Size(40, (12, 20), "steps:3", parts=parts, rivals=rivals)
    )
    assert _fields(result) == {
        *(f"auc_{part}_20" for part in parts),
        *(f"auc_{part}_12" for part in rivals),
        *("gain_two_levels_20", "gain_resnet10t_20", "gain_resnet10t_12"),
    }
    for part in parts[1:]:
        difference = result["auc_reference_20"] - result[f"auc_{part}_20"]
        assert result[f"gain_{part}_20"] == pytest.approx(difference)
    assert len(set(result.values())) > 1


def test_explanations_are_counted_inside_the_box():
    maps = np.zeros((3, 8, 8))
    maps[0, 2, 5] = maps[1, 7, 7] = maps[2, 0, 0] = 1.0
    points = explanations.maxima(maps)
    assert points.tolist() == [[5.5, 2.5], [7.5, 7.5], [0.5, 0.5]]
    assert explanations.maxima(maps[:1], blur=1.0).tolist() == [[5.5, 2.5]]
    boxes = np.array([[5, 2, 6, 3], [0, 0, 7, 7], [1, 0, 8, 8]])  # x0, y0, x1, y1
    assert explanations.hit_rate(points, boxes) == pytest.approx(1 / 3)
    assert explanations.hit_rate(points, boxes, grown=1.2) == 1.0


def test_explanations_report_their_hit_rates_beside_chance():
    size = explanations.Size(40, 64, 32, per_image=2, centred_steps=4, steps=4, evaluations=8)
    result = explanations.measure(size)
    hits = {"hit_rate", "hit_rate_smoothed", "hit_rate_by_chance"}
    with_spicules = {"hit_rate_with_spicules", "hit_rate_with_spicules_by_chance"}
    assert _fields(result) == hits | with_spicules | {"auc"}
    assert all(0 <= result[name] <= 1 for name in result)
    assert result["hit_rate_with_spicules"] >= result["hit_rate_smoothed"]


def test_a_window_holds_the_lesion_and_its_box_moves_along():
    images = np.zeros((2, 16, 16), np.uint16)
    images[0, 3:6, 10:12] = 1
    images[1, 8, 8] = 1
    boxes = np.array([[10, 3, 12, 6], [np.nan] * 4])
    cut, moved = _windows(images, boxes, 8, 1.0, 0)
    assert cut.shape == (2, 8, 8)
    x0, y0, x1, y1 = moved[0].astype(int)
    assert cut[0].sum() == cut[0, y0:y1, x0:x1].sum() == 6
    assert np.isnan(moved[1]).all()


def test_semi_supervised_training_stands_beside_training_without():
    size = semi_supervised.Size(40, 16, (12,), "steps:4", channels=(8, 16))
    result = semi_supervised.measure(size)
    assert _fields(result) == {
        f"auc_{way}_12{end}" for way, ends in (
            ("labelled", ("",)), ("unlabelled", ("", "_gain")), ("transferred", ("", "_gain")),
        ) for end in ends
    }  # fmt: skip
    assert len({result[f"auc_{way}_12"] for way in semi_supervised.WAYS}) > 1
    gain = result["auc_unlabelled_12"] - result["auc_labelled_12"]
    assert result["auc_unlabelled_12_gain"] == pytest.approx(gain)
