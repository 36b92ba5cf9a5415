"""Comparison: paired, corrected, refused where the patients differ; learning curves on top."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import norm, ttest_1samp

from sgc_experiments.bootstrap import Source, interval, p_value
from sgc_experiments.comparison import align, check_same_split, delong, holm, paired_differences
from sgc_experiments.errors import UserError
from sgc_experiments.evaluation import choose_thresholds, evaluate
from sgc_experiments.learning_curves import Cell, _mean_over_drawn_seeds, learning_curves
from tests.simulated_predictions import simulate

# Number of simulated studies, and the least coverage that three standard errors below 0.95 allow.
STUDIES = (100, 0.885)
MANY_STUDIES = pytest.param(1000, 0.93, marks=pytest.mark.slow)


def brute_force_delong(labels, first, second):
    """DeLong's variance from the definition: every pair of a positive and a negative image."""

    def kernel(scores):
        pairs = [
            [(x > y) + 0.5 * (x == y) for y in scores[labels == 0]] for x in scores[labels == 1]
        ]
        return np.array(pairs, dtype=float)

    a, b = kernel(first), kernel(second)
    s10 = np.cov(np.stack([a.mean(axis=1), b.mean(axis=1)]))
    s01 = np.cov(np.stack([a.mean(axis=0), b.mean(axis=0)]))
    covariance = s10 / a.shape[0] + s01 / a.shape[1]
    contrast = np.array([1, -1])
    return a.mean(), b.mean(), np.sqrt(contrast @ covariance @ contrast)


class TestDeLong:
    @pytest.mark.parametrize("decimals", [6, 0])
    def test_equals_all_pairs(self, decimals):
        rng = np.random.default_rng(4)
        labels = np.array([1] * 17 + [0] * 23)
        shared = rng.normal(size=40) + labels
        first = np.round(shared + rng.normal(size=40), decimals)
        second = np.round(shared + 2 * rng.normal(size=40), decimals)
        result = delong(labels, first, second, patients=np.arange(40))
        auc_1, auc_2, error = brute_force_delong(labels, first, second)
        assert result.first == pytest.approx(auc_1)
        assert result.second == pytest.approx(auc_2)
        assert result.p == pytest.approx(2 * norm.sf(abs(auc_1 - auc_2) / error))
        assert result.high - result.low == pytest.approx(2 * 1.959964 * error)

    def test_models_that_rank_alike_do_not_differ(self):
        labels, scores = np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4, 0.5])
        result = delong(labels, scores, np.exp(scores), patients=np.arange(5))
        assert (result.difference, result.p) == (0, 1)

    def test_refuses_several_images_of_a_patient_unless_asked(self):
        frame = simulate(20)
        arguments = frame["label"], frame["log_odds"], -frame["log_odds"]
        with pytest.raises(UserError, match="independent images"):
            delong(*arguments, patients=frame["patient"])
        asked = delong(*arguments, patients=frame["patient"], assume_independent=True)
        assert asked.difference == pytest.approx(2 * asked.first - 1)

    def test_refuses_a_single_positive(self):
        with pytest.raises(UserError, match="two images of each class"):
            delong([1, 0, 0], [1, 2, 3], [3, 2, 1], patients=[1, 2, 3])


class TestHolm:
    def test_by_hand(self):
        # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, made monotone.
        np.testing.assert_allclose(holm([0.03, 0.01, 0.04, 0.02]), [0.06, 0.04, 0.06, 0.06])
        np.testing.assert_allclose(holm([0.6, 0.5]), [1, 1])
        np.testing.assert_allclose(holm([0.02, np.nan, 0.03]), [0.04, np.nan, 0.04])
        assert holm([]).size == 0

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
    def test_between_plain_and_bonferroni_in_any_order(self, values, random):
        adjusted = holm(values)
        assert (adjusted >= np.array(values) - 1e-15).all()
        assert (adjusted <= np.minimum(np.array(values) * len(values), 1) + 1e-15).all()
        order = list(range(len(values)))
        random.shuffle(order)
        np.testing.assert_allclose(holm([values[i] for i in order]), adjusted[order])


class TestPairedDifferences:
    def test_difference_is_that_of_the_separate_evaluations(self):
        good, bad = simulate(40, model_seed=1), simulate(40, auc=0.65, model_seed=2)
        thresholds = {
            name: choose_thresholds(f["label"], f["probability"])
            for name, f in {"good": good, "bad": bad}.items()
        }
        metrics = ["auc", "brier", "sensitivity_at_90_specificity"]
        table = paired_differences(
            {"good": good, "bad": bad.sample(frac=1, random_state=0)}, "good",
            metrics=metrics, thresholds=thresholds, n_bootstrap=200,
        ).set_index("metric")  # fmt: skip
        for metric in metrics:
            values = [
                evaluate(f, thresholds[name], n_bootstrap=1)
                .set_index("metric")
                .loc[metric, "value"]
                for name, f in (("bad", bad), ("good", good))
            ]
            assert table.loc[metric, "difference"] == pytest.approx(values[0] - values[1])
        assert (table["low"] <= table["difference"]).all()
        assert (table["difference"] <= table["high"]).all()

    @pytest.mark.parametrize(("studies", "least"), [STUDIES, MANY_STUDIES])
    def test_covers_the_true_difference_at_its_nominal_rate(self, studies, least):
        """Studies of 40 patients; the true difference of the AUCs is 0.1 by construction."""
        hits = 0
        for seed in range(studies):
            models = {
                "a": simulate(40, auc=0.7, seed=seed, model_seed=1),
                "b": simulate(40, auc=0.8, seed=seed, model_seed=2),
            }
            table = paired_differences(models, "a", metrics=["auc"], n_bootstrap=250, seed=seed)
            hits += table.loc[0, "low"] <= 0.1 <= table.loc[0, "high"]
        assert least <= hits / studies <= 0.99

    def test_pairing_narrows_the_interval(self):
        a, b = simulate(60, model_seed=1), simulate(60, auc=0.75, model_seed=2)
        paired = paired_differences({"a": a, "b": b}, "a", metrics=["auc"], n_bootstrap=400).iloc[0]
        widths = [
            np.ptp(evaluate(f, None, n_bootstrap=400).loc[0, ["low", "high"]]) for f in (a, b)
        ]
        assert paired["high"] - paired["low"] < 0.8 * np.hypot(*widths)

    def test_a_model_equals_itself(self):
        frame = simulate(20)
        row = paired_differences({"a": frame, "b": frame}, "a", n_bootstrap=100).iloc[0]
        assert row[["difference", "low", "high", "p", "p_holm"]].tolist() == [0, 0, 0, 1, 1]

    def test_delong_stands_beside_where_patients_have_one_image(self):
        models = {"a": simulate(60, images=1), "b": simulate(60, images=1, model_seed=1)}
        table = paired_differences(models, "a", n_bootstrap=400).set_index("metric")
        assert table.loc["auc", "p_delong"] == pytest.approx(table.loc["auc", "p"], abs=0.1)
        assert np.isnan(table.loc["average_precision", "p_delong"])
        clustered = paired_differences({"a": simulate(9), "b": simulate(9)}, "a", n_bootstrap=10)
        assert clustered["p_delong"].isna().all()
        in_folds = {name: frame.assign(fold="1") for name, frame in models.items()}
        assert paired_differences(in_folds, "a", n_bootstrap=10)["p_delong"].isna().all()

    def test_holm_runs_over_the_models_of_one_metric(self):
        models = {f"m{k}": simulate(30, auc=0.6 + 0.1 * k, model_seed=k) for k in range(3)}
        table = paired_differences(models, "m0", n_bootstrap=200)
        for _, rows in table.groupby("metric"):
            np.testing.assert_allclose(rows["p_holm"], holm(rows["p"]))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda f: f.iloc[:-1], "column image_id differs"),
            (lambda f: f.assign(patient="pat-0"), "column patient differs"),
            (lambda f: f.assign(label=1 - f["label"]), "column label differs"),
            (lambda f: f.assign(fold=0), "column fold differs"),
        ],
    )
    def test_refuses_other_images(self, change, message):
        frame = simulate(10)
        with pytest.raises(UserError, match=message):
            paired_differences({"a": frame, "b": change(frame)}, "a", n_bootstrap=5)

    def test_refuses_unknown_names_and_single_models(self):
        frame = simulate(10)
        with pytest.raises(UserError, match="No model c"):
            paired_differences({"a": frame, "b": frame}, "c", n_bootstrap=5)
        with pytest.raises(UserError, match="at least two"):
            paired_differences({"a": frame}, "a", n_bootstrap=5)
        with pytest.raises(UserError, match="Unknown metric uac"):
            paired_differences({"a": frame, "b": frame}, "a", metrics=["uac"], n_bootstrap=5)
        with pytest.raises(UserError, match="no model"):
            align({})

    def test_mixed_splits_are_refused_by_name(self):
        assert check_same_split({"a": "f00", "b": "f00"}) == "f00"
        with pytest.raises(UserError, match=r"split aaa: sgc; split bbb: resnet18, vit") as caught:
            check_same_split({"sgc": "aaa", "vit": "bbb", "resnet18": "bbb"})
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match="no run"):
            check_same_split({})


def study(aucs, *, sizes=(25, 50, 100), seeds=(0, 1, 2), patients=60):
    """Cells of a made-up study; `aucs` are the true AUCs of each model at each size."""
    return [
        Cell(model, size, seed, simulate(patients, auc=auc, model_seed=1 + 10 * k + seed))
        for k, (model, curve) in enumerate(aucs.items())
        for size, auc in zip(sizes, curve, strict=True)
        for seed in seeds
    ]


AUCS = {"sgc": (0.75, 0.8, 0.85), "cnn": (0.55, 0.65, 0.8)}


class TestLearningCurves:
    def test_values_are_means_over_seeds(self):
        cells = study(AUCS)
        table = learning_curves(cells, n_bootstrap=100).table().set_index(["model", "size"])
        own = [
            evaluate(c.predictions, None, n_bootstrap=1).loc[0, "value"]
            for c in cells
            if (c.model, c.size) == ("cnn", 50)
        ]
        row = table.loc[("cnn", 50)]
        assert row["value"] == pytest.approx(np.mean(own))
        assert row["spread_over_seeds"] == pytest.approx(np.std(own, ddof=1))
        assert row["low"] < row["value"] < row["high"]
        assert row["n_seeds"] == 3

    def test_the_band_holds_the_spread_of_the_seeds(self):
        """With test patients held fixed, drawn seeds vary as a mean of four does: s/√4."""
        frames = {seed: simulate(200, auc=auc, images=1) for seed, auc in
                  enumerate((0.6, 0.7, 0.8, 0.9))}  # fmt: skip
        cells = [Cell("m", 10, seed, frame) for seed, frame in frames.items()]
        curves = learning_curves(cells, n_bootstrap=3000)
        alone = learning_curves(cells[1:2], n_bootstrap=3000)
        between = np.var(curves.drawn_samples[0, 0]) - np.var(alone.drawn_samples[0, 0])
        expected = curves.table().loc[0, "spread_over_seeds"] ** 2 / 4
        assert between == pytest.approx(expected, rel=0.1)

    def test_seeds_alone_are_a_t_test(self):
        """With the same errors on all patients but for the seed's, only the seeds vary."""
        differences = np.array([0.004, 0.010, 0.016])
        others = [Source(differences.var(ddof=1) / 3, 2)]
        fixed = np.full(500, differences.mean())
        given = {"n_patients": 77, "others": others}
        expected = ttest_1samp(differences, 0)
        assert interval(0.010, fixed, **given) == pytest.approx(expected.confidence_interval())
        assert p_value(0.010, fixed, **given) == pytest.approx(expected.pvalue, abs=1e-5)

    def test_three_seeds_that_vary_more_than_patients_are_covered(self):
        """Seeds vary four times as far; resampled as patients are, they cover in 86 %."""
        hits = drawn = disagree = 0
        draws = np.random.default_rng(0).random((250, 3))
        for study in range(600):
            rng = np.random.default_rng(study)
            by_seed = rng.normal(0, 0.12, 3) + rng.normal(0, 0.03)
            value, others = by_seed.mean(), [Source(by_seed.var(ddof=1) / 3, 2)]
            samples = by_seed[:, None] + rng.normal(0, 0.03, 250)
            given = {"n_patients": 77, "others": others}
            low, high = interval(value, samples.mean(axis=0), **given)
            hits += low <= 0 <= high
            if study < 100:  # a p value takes twenty intervals
                p = p_value(value, samples.mean(axis=0), **given)
                disagree += (p >= 0.05) != (low <= 0 <= high)
            low, high = interval(value, _mean_over_drawn_seeds(samples, draws), n_patients=77)
            drawn += low <= 0 <= high
        assert hits / 600 >= 0.9
        assert drawn / 600 < 0.88
        assert not disagree

    def test_seeds_widen_what_the_table_says(self):
        """Three fits of one model whose AUCs are far apart, on the same test patients."""
        aucs = (0.6, 0.75, 0.9)
        cells = [
            Cell(model, 10, seed, simulate(100, auc=auc + gain))
            for model, gain in (("a", 0.0), ("b", 0.05))
            for seed, auc in enumerate(aucs)
        ]
        curves = learning_curves(cells, n_bootstrap=200)
        row = curves.table().iloc[0]
        # Three seeds leave room beyond the worst and the best of them, but not beyond an AUC of 1.
        assert row["low"] < min(curves.by_seed[0, 0].values()) - 0.05
        assert row["high"] == 1
        # The same seeds are paired: their differences are alike, however far the fits are apart.
        difference = curves.differences("a").iloc[0]
        assert difference["high"] - difference["low"] < 0.3 * (row["high"] - row["low"])
        # Other seeds are not.
        moved = [c._replace(seed=c.seed + 5) if c.model == "b" else c for c in cells]
        unpaired = learning_curves(moved, n_bootstrap=200).differences("a").iloc[0]
        assert unpaired["low"] < 0 < unpaired["high"]

    @pytest.mark.slow
    def test_covers_with_random_seeds_and_patients(self):
        """Each study draws three seeds whose true AUC varies about 0.75, and 50 test patients."""
        hits = 0
        for trial in range(400):
            aucs = np.random.default_rng(trial).normal(0.75, 0.04, 3)
            cells = [
                Cell("m", 10, s, simulate(50, auc=auc, seed=trial, model_seed=s))
                for s, auc in enumerate(aucs)
            ]
            row = learning_curves(cells, n_bootstrap=250, seed=trial).table().iloc[0]
            hits += row["low"] <= 0.75 <= row["high"]
        assert 0.9 <= hits / 400 <= 0.99

    def test_differences_are_paired_and_corrected(self):
        table = learning_curves(study(AUCS), n_bootstrap=400).differences("cnn")
        assert table["size"].tolist() == [25, 50, 100]
        assert table.loc[0, "low"] > 0
        assert (table["p_holm"] >= table["p"]).all()
        np.testing.assert_allclose(table["p_holm"], holm(table["p"]))

    def test_smallest_size_interpolates_in_log_size(self):
        curves = learning_curves(study(AUCS), n_bootstrap=100)
        at = dict(zip(curves.models, curves.values, strict=True))["cnn"]
        target = float((at[1] + at[2]) / 2)
        table = curves.smallest_size(target).set_index("model")
        assert table.loc["cnn", "size"] == pytest.approx(np.sqrt(50 * 100))
        assert table.loc["cnn", "reached"] == "within"
        assert table.loc["cnn", "low"] <= table.loc["cnn", "size"] <= table.loc["cnn", "high"]
        assert curves.smallest_size(0.1)["reached"].tolist() == ["at most", "at most"]
        never = curves.smallest_size(0.999)
        assert np.isinf(never["size"]).all()
        assert (never["reached"] == "never").all()
        assert np.isfinite(never["low"]).all()

    def test_label_efficiency(self):
        """The CNN with four times the patients is the very same model: the factor is four."""
        sgc, cnn = {10: 0.7, 20: 0.75, 40: 0.8}, {40: 0.7, 80: 0.75, 160: 0.8}
        cells = [
            Cell(name, size, 0, simulate(60, auc=auc))
            for name, curve in (("sgc", sgc), ("cnn", cnn))
            for size, auc in curve.items()
        ]
        table = learning_curves(cells, n_bootstrap=50).label_efficiency("sgc").set_index("size")
        np.testing.assert_allclose(table["factor"], 4)
        assert table["bound"].tolist() == ["at most", "", ""]
        np.testing.assert_allclose(table["low"], 4)
        back = learning_curves(cells, n_bootstrap=50).label_efficiency("cnn")
        np.testing.assert_allclose(back["factor"], 1 / 4)

    def test_a_model_that_never_gets_there_has_a_lower_bound(self):
        cells = study({"sgc": (0.9, 0.92, 0.95), "cnn": (0.55, 0.6, 0.65)})
        table = learning_curves(cells, n_bootstrap=50).label_efficiency("sgc").set_index("size")
        assert table.loc[25, ["factor", "bound"]].tolist() == [4, "at least"]
        assert np.isinf(table.loc[25, "high"])
        assert table.loc[25, "low"] == 4

    def test_a_resample_without_a_class_does_not_count_as_never(self):
        """Three positive patients of twenty: 4 % of the resamples draw none of them."""
        labels = np.repeat([1, 0], [3, 17])
        cells = []
        for model, size, errors in (("a", 10, 12), ("a", 100, 0), ("b", 10, 12), ("b", 100, 0)):
            log_odds = np.where(labels == 1, 0.0, -1.0)
            log_odds[3 : 3 + errors] = 1.0
            table = {"image_id": [f"{i}" for i in range(20)], "patient": np.arange(20).astype(str)}
            table |= {"label": labels, "log_odds": log_odds, "probability": expit(log_odds)}
            cells.append(Cell(model, size, 0, pd.DataFrame(table)))
        curves = learning_curves(cells, n_bootstrap=500)
        assert np.isnan(curves.samples[0, 0]).mean() > 0.025
        reached = curves.smallest_size(0.9)
        assert (reached["high"] <= 100).all()
        factors = curves.label_efficiency("a").set_index("size")
        np.testing.assert_allclose(factors.loc[100, ["factor", "low", "high"]].astype(float), 1)
        assert np.isfinite(factors["high"]).all()

    def test_a_perfect_mean_gets_the_exact_limit(self):
        frame = simulate(20, images=1)
        frame = frame.assign(probability=frame["label"] * 0.8 + 0.1).drop(columns="log_odds")
        table = learning_curves([Cell("m", 10, s, frame) for s in range(2)], n_bootstrap=50).table()
        auc = evaluate(frame, None, n_bootstrap=50).loc[0]
        assert auc["interval"] == "exact"
        assert table.loc[0, ["value", "low", "high"]].tolist() == [1, auc["low"], 1]

    def test_gaps_in_the_grid_are_left_open(self):
        cells = [c for c in study(AUCS) if (c.model, c.size) != ("cnn", 50)]
        curves = learning_curves(cells, n_bootstrap=50)
        assert len(curves.table()) == 5
        assert curves.differences("sgc")["size"].tolist() == [25, 100]
        assert np.isfinite(curves.smallest_size(0.7)["size"]).any()

    def test_any_order_of_cells_gives_the_same_table(self):
        cells = study(AUCS, seeds=(0, 1))
        mixed = [cells[i] for i in np.random.default_rng(0).permutation(len(cells))]
        tables = [
            learning_curves(c, n_bootstrap=50)
            .table()
            .sort_values(["model", "size"], ignore_index=True)
            for c in (cells, mixed)
        ]
        pd.testing.assert_frame_equal(*tables)

    def test_refusals(self):
        cells = study(AUCS, seeds=(0,))
        with pytest.raises(UserError, match="no finished cell"):
            learning_curves([])
        with pytest.raises(UserError, match="twice"):
            learning_curves([*cells, cells[0]])
        with pytest.raises(UserError, match="not tested on the same images"):
            learning_curves([*cells, Cell("x", 5, 0, simulate(9))], n_bootstrap=5)
        with pytest.raises(UserError, match="Unknown metric uac"):
            learning_curves(cells, metric="uac", n_bootstrap=5)
        with pytest.raises(UserError, match="No model x"):
            learning_curves(cells, n_bootstrap=5).differences("x")


def test_every_pair_of_models_is_antisymmetric():
    models = {f"m{k}": simulate(25, auc=0.6 + 0.1 * k, model_seed=k) for k in range(3)}
    for a, b in itertools.combinations(models, 2):
        pair = {a: models[a], b: models[b]}
        forth = paired_differences(pair, a, metrics=["auc"], n_bootstrap=200).iloc[0]
        back = paired_differences(pair, b, metrics=["auc"], n_bootstrap=200).iloc[0]
        assert forth["difference"] == pytest.approx(-back["difference"])
        assert forth["low"] == pytest.approx(-back["high"], abs=1e-9)
        assert forth["p"] == pytest.approx(back["p"], abs=1e-9)
