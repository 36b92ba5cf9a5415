"""Evaluation: honest intervals, one row per metric, breasts and examinations, clear refusals."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from scipy.stats import binom, norm
from sklearn.metrics import average_precision_score, roc_auc_score

from sgc_experiments.bootstrap import (
    bootstrap,
    exact_limit,
    interval,
    p_value,
    patient_draws,
    quadrature_interval,
)
from sgc_experiments.comparison import paired_differences
from sgc_experiments.curves import (
    abstention_table,
    precision_recall_band,
    reliability_table,
    roc_band,
)
from sgc_experiments.errors import UserError
from sgc_experiments.evaluation import (
    COLUMNS,
    choose_thresholds,
    evaluate,
    evaluation_report,
    headline,
)
from sgc_experiments.intervals import PatientCounts, interval_text, metric_interval
from sgc_experiments.metrics import probability_metrics, rank_metrics
from sgc_experiments.predictions import aggregate, check_predictions, one_vs_rest
from tests.simulated_predictions import separation, simulate


def table_of(frame, **settings):
    thresholds = choose_thresholds(frame["label"], frame["probability"])
    return evaluate(frame, thresholds, **({"n_bootstrap": 200} | settings)).set_index("metric")


def three_classes(n=60, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    p = rng.dirichlet(np.ones(3), n) + np.eye(3)[labels] * 0.4
    p /= p.sum(axis=1, keepdims=True)
    columns = {f"probability_{name}": p[:, c] for c, name in enumerate(("a", "b", "c"))}
    ids = [f"img-{i}" for i in range(n)]
    patients = [f"pat-{i // 2}" for i in range(n)]
    return pd.DataFrame({"image_id": ids, "patient": patients, "label": labels} | columns)


def in_folds(n_patients, folds=4):
    """Out-of-fold predictions of models with a scale each."""
    frame = simulate(n_patients)
    fold = frame["patient"].str.removeprefix("pat-").astype(int) % folds
    log_odds = frame["log_odds"] * (1 + fold) - 6 * (fold % 2)
    return frame.assign(
        fold=fold.astype(str), log_odds=log_odds, probability=1 / (1 + np.exp(-log_odds))
    )


class TestBootstrap:
    def test_draws_patients_with_replacement(self):
        draws = patient_draws(7, 500, seed=1)
        assert (draws.sum(axis=1) == 7).all()
        # Each count is binomial(7, 1/7): compare the share of absent patients.
        assert (draws == 0).mean() == pytest.approx(binom.pmf(0, 7, 1 / 7), abs=0.02)

    def test_resamples_whole_patients_whatever_the_order_of_rows(self):
        frame = simulate(20)

        def run(frame):
            labels, scores = frame["label"].to_numpy(), frame["log_odds"].to_numpy()
            return bootstrap(
                lambda w: rank_metrics(labels, scores, w), frame["patient"], n_bootstrap=50, seed=3
            ).samples["auc"]

        shuffled = frame.sample(frac=1, random_state=0)
        np.testing.assert_allclose(run(frame), run(shuffled), rtol=1e-12)

    def test_one_resample_by_hand(self):
        frame = simulate(12)
        labels, scores = frame["label"].to_numpy(), frame["log_odds"].to_numpy()
        samples = bootstrap(
            lambda w: rank_metrics(labels, scores, w), frame["patient"], n_bootstrap=5, seed=0
        ).samples["auc"]
        names = np.unique(frame["patient"])
        for draw, auc in zip(patient_draws(12, 5, seed=0), samples, strict=True):
            drawn = pd.concat([frame[frame["patient"] == p] for p in np.repeat(names, draw)])
            assert auc == pytest.approx(roc_auc_score(drawn["label"], drawn["log_odds"]))

    @pytest.mark.parametrize(
        ("studies", "least"), [(150, 0.9), pytest.param(1500, 0.93, marks=pytest.mark.slow)]
    )
    def test_interval_covers_at_its_nominal_rate_and_ignoring_patients_does_not(
        self, studies, least
    ):
        """Studies of 40 patients with 4 alike images each; the true AUC is 0.8 by construction."""
        hits = {"patient": 0, "image_id": 0}
        for study in range(studies):
            frame = simulate(40, seed=study)
            labels, scores = frame["label"].to_numpy(), frame["log_odds"].to_numpy()
            for unit in hits:
                drawn = bootstrap(
                    lambda w, y=labels, s=scores: rank_metrics(y, s, w),
                    frame[unit], n_bootstrap=250, seed=study,
                )  # fmt: skip
                low, high = interval(
                    drawn.estimate["auc"], drawn.samples["auc"], n_patients=frame[unit].nunique()
                )
                hits[unit] += low <= 0.8 <= high
        assert least <= hits["patient"] / studies <= 0.985
        assert hits["image_id"] / studies < 0.85

    def test_an_auc_is_as_certain_as_the_scarcer_class(self):
        """Studies of 5 positive and 95 negative patients; expanded for 100, intervals are short."""
        labels = np.repeat([1, 0], [5, 95])
        frame = pd.DataFrame({"patient": np.arange(100), "label": labels})
        patients = PatientCounts.of(frame)
        covered = as_if_many = 0
        for study in range(400):
            scores = np.random.default_rng(study).normal(labels * separation(0.8))
            drawn = bootstrap(
                lambda w, s=scores: rank_metrics(labels, s, w),
                frame["patient"], n_bootstrap=250, seed=study,
            )  # fmt: skip
            value, samples = drawn.estimate["auc"], drawn.samples["auc"]
            low, high, _ = metric_interval("auc", value, samples, patients)
            covered += low <= 0.8 <= high
            low, high = interval(value, samples, n_patients=100)
            as_if_many += low <= 0.8 <= high
        assert covered / 400 >= 0.9
        assert as_if_many / 400 < 0.89

    def test_what_each_metric_rests_on(self):
        frame = pd.DataFrame({"patient": [*"aabbcdefg"], "label": [0, 1, 0, 1, 0, 0, 0, 0, 0]})
        patients = PatientCounts.of(frame)
        assert patients == (7, (7, 2))
        rests_on = {m: patients.behind(m) for m in ("auc", "sensitivity", "specificity", "brier")}
        assert rests_on == {"auc": 2, "sensitivity": 2, "specificity": 7, "brier": 7}
        # Two patients who are in both classes are one pair.
        mixed = PatientCounts.of(frame.iloc[:4])
        assert (mixed.behind("auc"), mixed.behind_perfect("auc")) == (2, 1)

    def test_calibration_interval_covers_where_percentiles_cannot(self):
        """An overconfident model, whose ECE is known from 100,000 images."""
        many = simulate(25_000, seed=1)
        truth = self._ece(many)["ece"][0]
        covered = percentile = 0
        for study in range(100):
            frame = simulate(60, seed=study)
            drawn = bootstrap(
                lambda w, f=frame: self._ece(f, w), frame["patient"], n_bootstrap=200, seed=study
            )
            estimate, samples = drawn.estimate["ece"], drawn.samples["ece"]
            low, high = quadrature_interval(estimate, samples)
            assert 0 <= low <= estimate <= high
            covered += low <= truth <= high
            q = np.quantile(samples, [0.025, 0.975])
            percentile += q[0] <= truth <= q[1]
        assert covered / 100 >= 0.88
        assert percentile / 100 < 0.6

    @staticmethod
    def _ece(frame, weights=None):
        labels, log_odds = frame["label"].to_numpy(), 1.5 * frame["log_odds"].to_numpy()
        weights = np.ones((1, len(frame))) if weights is None else weights
        return {"ece": probability_metrics(labels, log_odds, weights)["ece"]}

    def test_p_value_is_where_the_interval_ends(self):
        samples = np.random.default_rng(0).normal(0.05, 0.02, 5000)
        p = p_value(0.05, samples, n_patients=30)
        low, _ = interval(0.05, samples, n_patients=30, confidence=1 - p)
        assert low == pytest.approx(0, abs=2e-3)
        assert p_value(0.0, np.zeros(100), n_patients=30) == 1
        assert p_value(1.0, np.ones(99), n_patients=30) == pytest.approx(2 / 100)

    def test_undefined_resamples_are_left_out(self):
        samples = np.array([np.nan, *np.linspace(0.4, 0.6, 99), np.nan])
        low, high = interval(0.5, samples, n_patients=50)
        assert 0.4 <= low < 0.42
        assert 0.58 < high <= 0.6
        assert np.isnan(interval(0.5, np.full(5, np.nan), n_patients=50)).all()

    def test_exact_limit_is_clopper_pearson(self):
        # 5 of 5: the proportion at which five successes have a chance of 2.5 %.
        assert binom.pmf(5, 5, exact_limit(1.0, 5)) == pytest.approx(0.025)
        assert binom.pmf(0, 5, exact_limit(0.0, 5)) == pytest.approx(0.025)


class TestThresholds:
    def test_by_hand(self):
        values = [0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
        chosen = choose_thresholds([1, 1, 1, 0, 1, 1, 0, 0, 0, 0], values)
        expected = {
            "balanced": 0.45, "specificity_80": 0.45, "specificity_90": 0.75,
            "specificity_95": 0.75, "sensitivity_80": 0.55, "sensitivity_90": 0.45,
            "sensitivity_95": 0.45,
        }  # fmt: skip
        assert chosen == pytest.approx(expected)

    def test_the_laxest_of_equals(self):
        chosen = choose_thresholds([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.6])
        assert chosen["balanced"] == pytest.approx(0.65)

    def test_a_cut_above_and_between_neighbours(self):
        assert choose_thresholds([1, 0], [0.2, 0.6])["specificity_95"] == pytest.approx(0.8)
        assert choose_thresholds([1, 0], [0.2, 1.0])["specificity_95"] == np.nextafter(1, 2)
        low, high = 0.5, float(np.nextafter(0.5, 1))
        assert low < choose_thresholds([0, 1], [low, high])["balanced"] <= high


class TestEvaluate:
    def test_table(self):
        frame = simulate(60)
        table = table_of(frame)
        assert [table.index.name, *table.columns] == list(COLUMNS)
        assert table.loc["auc", "value"] == pytest.approx(
            roc_auc_score(frame["label"], frame["probability"])
        )
        assert (table["low"] <= table["value"]).all()
        assert (table["value"] <= table["high"]).all()
        assert (table["n_images"] == 240).all()
        assert (table["n_patients"] == 60).all()
        assert (table["n_positive"] == frame["label"].sum()).all()
        # Thresholds of these very images: the rate aimed at is reached.
        assert table.loc["sensitivity_at_90_specificity", "achieved"] >= 0.9
        assert table.loc["specificity_at_95_sensitivity", "achieved"] >= 0.95
        rates = {
            f"{a}_at_{rate}_{b}"
            for rate in (80, 90, 95)
            for a, b in (("sensitivity", "specificity"), ("specificity", "sensitivity"))
        }
        others = ["auc", "average_precision", "partial_auc", "sensitivity", "specificity"]
        others += ["balanced_accuracy", "brier", "log_loss", "ece", "accuracy", "prevalence"]
        assert set(table.index) == rates | set(others)
        assert evaluate(frame, None, n_bootstrap=5)["achieved"].dtype == float

    def test_beside_it_the_majority_class(self):
        frame = simulate(60)
        majority = table_of(frame)["majority_class"]
        prevalence = frame["label"].mean()
        assert majority["auc"] == majority["balanced_accuracy"] == 0.5
        assert majority["average_precision"] == pytest.approx(prevalence)
        assert majority["accuracy"] == pytest.approx(max(prevalence, 1 - prevalence))
        assert majority["sensitivity"] == majority["sensitivity_at_90_specificity"] == 0
        assert majority["brier"] == pytest.approx(prevalence * (1 - prevalence))
        skewed = table_of(frame, class_prior=(0.1, 0.9))["majority_class"]
        assert skewed["accuracy"] == pytest.approx(prevalence)
        assert majority["specificity_at_90_sensitivity"] == 0
        assert (skewed["sensitivity"], skewed["specificity"]) == (1, 0)
        for prior, wrong in (((0, 1), 1 - prevalence), ((1, 0), prevalence)):
            certain = table_of(frame, class_prior=prior)["majority_class"]
            assert certain["auc"] == 0.5
            assert certain["log_loss"] == pytest.approx(-np.log(np.finfo(float).eps) * wrong)

    def test_same_seed_same_numbers(self):
        frame = simulate(30)
        pd.testing.assert_frame_equal(table_of(frame, seed=5), table_of(frame, seed=5))
        assert (
            table_of(frame, seed=5).loc["auc", "low"] != table_of(frame, seed=6).loc["auc", "low"]
        )

    def test_a_perfect_model_gets_an_exact_limit_not_a_point(self):
        frame = simulate(20)
        frame = frame.assign(probability=frame["label"] * 0.8 + 0.1).drop(columns="log_odds")
        table = table_of(frame)
        malignant = frame.loc[frame["label"] == 1, "patient"].nunique()
        assert table.loc["auc", "value"] == table.loc["auc", "high"] == 1
        assert table.loc["auc", "low"] == pytest.approx(
            0.025 ** (1 / min(malignant, 20 - malignant))
        )
        assert table.loc["sensitivity", "low"] == pytest.approx(0.025 ** (1 / malignant))
        assert table.loc["specificity", "interval"] == "exact"
        assert table.loc["average_precision", "interval"] == "none"

    def test_a_constant_model_is_chance(self):
        frame = simulate(20).assign(probability=0.3).drop(columns="log_odds")
        table = table_of(frame)
        assert table.loc["auc", ["value", "low", "high"]].tolist() == [0.5, 0.5, 0.5]
        assert table.loc["balanced_accuracy", "value"] == 0.5

    def test_undefined_resamples_are_counted(self):
        frame = simulate(4)
        benign = frame["patient"].iloc[0]
        frame["label"] = (frame["patient"] != benign).astype(int)
        table = table_of(frame, n_bootstrap=1000)
        # The only benign patient is missed with probability (3/4)⁴, all others with (1/4)⁴.
        expected = 1000 * (1 - 0.75**4 - 0.25**4)
        assert table.loc["auc", "n_resamples"] == pytest.approx(expected, abs=60)
        assert table.loc["brier", "n_resamples"] == 1000

    def test_log_odds_rank_where_probabilities_round_to_one(self):
        frame = simulate(20)
        frame["log_odds"] = frame["log_odds"] + 60
        frame["probability"] = 1.0
        expected = roc_auc_score(frame["label"], frame["log_odds"])
        assert evaluate(frame, None, n_bootstrap=10).set_index("metric").loc["auc", "value"] == (
            pytest.approx(expected)
        )

    def test_an_infinite_log_odds_lies_beyond_all_others(self):
        table = {"image_id": list("abcdef"), "patient": list("pqrstu"), "label": [1, 1, 1, 0, 0, 0]}
        table["log_odds"] = [np.inf, np.inf, 60.0, 50.0, -50.0, -np.inf]
        frame = pd.DataFrame(table).assign(probability=lambda t: expit(t["log_odds"]))
        assert evaluate(frame, None, n_bootstrap=5).loc[0, "value"] == 1
        checked = check_predictions(frame)["log_odds"]
        assert np.isfinite(checked).all()
        assert checked[2:5].tolist() == [60.0, 50.0, -50.0]
        certain = check_predictions(frame.drop(columns="log_odds"))["log_odds"]
        assert np.isfinite(certain).all()
        assert certain[0] > 36 > -36 > certain[5]

    def test_several_classes(self):
        frame = three_classes()
        table = evaluate(frame, None, n_bootstrap=200).set_index("metric")
        p = frame.filter(like="probability_").to_numpy()
        expected = roc_auc_score(frame["label"], p, multi_class="ovr")
        assert table.loc["macro_auc", "value"] == pytest.approx(expected)
        assert table.loc["macro_auc", "majority_class"] == 0.5
        assert table.loc["accuracy", "majority_class"] == pytest.approx(1 / 3)
        assert (table["low"] < table["value"]).all()
        assert (table["value"] < table["high"]).all()
        by_class = one_vs_rest(frame)
        aucs = [roc_auc_score(f["label"], f["probability"]) for f in by_class.values()]
        assert list(by_class) == ["a", "b", "c"]
        assert np.mean(aucs) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda f: f.assign(label=1), "hold 1 of 2 classes"),
            (lambda f: f.drop(columns="patient"), "no column patient"),
            (lambda f: f.iloc[:0], "not a single image"),
            (lambda f: pd.concat([f, f.iloc[:3]]), "3 image"),
            (lambda f: f.assign(label=2), "labels are 0 or 1"),
            (lambda f: f.assign(probability=np.nan), "between 0 and 1"),
            (lambda f: f.assign(probability=1.2), "between 0 and 1"),
            (lambda f: f.assign(probability=0.5), "not the logit"),
            (lambda f: f.assign(patient=None), "patient or label is missing"),
        ],
    )
    def test_refuses_in_one_sentence(self, change, message):
        with pytest.raises(UserError, match=message):
            evaluate(change(simulate(8)), None, n_bootstrap=5)

    def test_messages_in_full(self):
        frame = simulate(8)
        with pytest.raises(UserError, match="one class only") as told:
            choose_thresholds([1, 1], [0.1, 0.9])
        assert str(told.value) == (
            "The validation images hold one class only, so no threshold can be chosen on them; "
            "take more patients for validation or another split seed."
        )
        exist = r"so that AUC, sensitivity and specificity do not exist; evaluate on images of "
        with pytest.raises(UserError, match=exist + r"every class\.$"):
            evaluate(frame.assign(label=1), None, n_bootstrap=5)
        with pytest.raises(UserError, match=r"^test predictions: no column patient"):
            evaluation_report(frame, frame.drop(columns="patient"))
        with pytest.raises(UserError, match=r"^validation predictions: no column patient"):
            evaluation_report(frame.drop(columns="patient"), frame)

    def test_refuses_a_class_that_no_image_has(self):
        frame = three_classes()
        with pytest.raises(UserError, match="hold 2 of 3 classes"):
            evaluate(frame[frame["label"] < 2], None, n_bootstrap=5)
        with pytest.raises(UserError, match="sum to 1"):
            evaluate(frame.assign(probability_a=0.9), None, n_bootstrap=5)


class TestLevels:
    def test_breast_and_exam_by_hand(self):
        frame = pd.DataFrame({
            "image_id": ["1", "2", "3", "4"],
            "patient": "p", "exam": "e", "density": "2",
            "laterality": ["L", "L", "R", "R"],
            "view": ["CC", "MLO", "CC", "MLO"],
            "label": [0, 0, 1, 0],
            "log_odds": [1.0, 3.0, -1.0, 0.0],
            "standard_error": [0.3, 0.4, 1.0, 1.0],
        })  # fmt: skip
        frame["probability"] = 1 / (1 + np.exp(-frame["log_odds"]))
        breasts = aggregate(frame, "breast").set_index("laterality")
        assert breasts["log_odds"].to_dict() == {"L": 2.0, "R": -0.5}
        assert breasts["label"].to_dict() == {"L": 0, "R": 1}
        assert breasts.loc["L", "standard_error"] == pytest.approx(0.25)
        exam = aggregate(frame, "exam")
        assert exam[["log_odds", "label", "density"]].iloc[0].tolist() == [2.0, 1, "2"]
        assert exam.loc[0, "standard_error"] == pytest.approx(0.25)
        check_predictions(exam)

    def test_exams_are_scored_by_their_worst_breast(self):
        frame = simulate(30)
        breasts, exams = aggregate(frame, "breast"), aggregate(frame, "exam")
        highest = breasts.groupby("exam")["log_odds"].max()
        np.testing.assert_allclose(exams.set_index("exam")["log_odds"], highest[exams["exam"]])
        assert len(breasts) == 60
        assert len(exams) == 30

    def test_breasts_need_a_side_and_two_classes(self):
        with pytest.raises(UserError, match="laterality"):
            aggregate(simulate(4).assign(laterality=""), "breast")
        with pytest.raises(UserError, match="two classes only"):
            aggregate(three_classes(), "exam")

    def test_report_has_all_levels_and_groups(self):
        report = evaluation_report(simulate(40, seed=1), simulate(60), n_bootstrap=50)
        groups = report.groupby("level")["group"].unique().map(sorted).to_dict()
        assert groups["breast"] == groups["exam"] == ["all"]
        expected = ["all", *(f"density {d}" for d in "1234"), "view CC", "view MLO"]
        assert groups["image"] == expected
        assert not report.duplicated(["level", "group", "metric"]).any()
        scalars = headline(report, "test")
        assert scalars["test_auc_low"] <= scalars["test_auc"] <= scalars["test_auc_high"]
        assert {"test_breast_auc", "test_exam_auc"} <= set(scalars)
        assert np.isfinite(list(scalars.values())).all()

    def test_the_report_passes_its_settings_on(self):
        validation, test = simulate(40, seed=1), simulate(60)
        given = {"n_bootstrap": 20, "seed": 3, "class_prior": (0.1, 0.9)}
        report = evaluation_report(validation, test, **given)
        assert list(report.columns) == ["level", "group", *COLUMNS]
        assert report.index.tolist() == list(range(len(report)))
        thresholds = choose_thresholds(validation["label"], validation["probability"])
        for group, rows in (("all", test), ("view CC", test[test["view"] == "CC"])):
            found = report[(report["level"] == "image") & (report["group"] == group)]
            pd.testing.assert_frame_equal(
                found[list(COLUMNS)].reset_index(drop=True),
                evaluate(rows, thresholds, **given),
                check_dtype=False,
            )

    def test_the_seed_is_0_unless_given(self):
        frame = simulate(20)
        pd.testing.assert_frame_equal(table_of(frame), table_of(frame, seed=0))
        reports = [evaluation_report(frame, frame, n_bootstrap=20, **o) for o in ({}, {"seed": 0})]
        pd.testing.assert_frame_equal(*reports)

    def test_a_report_of_several_classes(self):
        report = evaluation_report(three_classes(seed=1), three_classes(), n_bootstrap=20)
        assert set(zip(report["level"], report["group"], strict=True)) == {("image", "all")}
        assert list(report.columns) == ["level", "group", *COLUMNS]
        assert report["n_positive"].isna().all()
        expected = evaluate(three_classes(), None, n_bootstrap=20).set_index("metric")["value"]
        assert headline(report, "test")["test_macro_auc"] == pytest.approx(expected["macro_auc"])

    def test_folds_in_one_table_alone_leave_thresholds_pooled(self):
        whole, folds = simulate(40, seed=1), in_folds(40)
        for validation, test in ((whole, folds), (folds, whole)):
            report = evaluation_report(validation, test, n_bootstrap=5)
            found = report.set_index(["level", "group", "metric"])["value"]
            thresholds = choose_thresholds(validation["label"], validation["probability"])
            pooled = evaluate(test, thresholds, n_bootstrap=5).set_index("metric")["value"]
            assert found["image", "all", "sensitivity"] == pytest.approx(pooled["sensitivity"])

    def test_a_subgroup_with_one_class_keeps_what_exists(self):
        frame = simulate(30)
        frame["density"] = np.where(frame["label"] == 1, "4", "1")
        report = evaluation_report(frame, frame, n_bootstrap=20).set_index(["group", "metric"])
        assert np.isnan(report.loc[("density 4", "auc"), "value"])
        assert np.isfinite(report.loc[("density 4", "sensitivity"), "value"])
        assert np.isnan(report.loc[("density 4", "specificity"), "value"])

    def test_every_fold_uses_its_own_threshold(self):
        """The second fold's model is 5 nats too high: pooled thresholds would call all positive."""
        folds = []
        for fold, shift in ((0, 0.0), (1, 5.0)):
            part = simulate(40, auc=0.95, seed=fold).assign(fold=fold)
            part[["image_id", "patient", "exam"]] += f"-{fold}"
            part["log_odds"] += shift
            part["probability"] = 1 / (1 + np.exp(-part["log_odds"]))
            folds.append(part)
        frame = pd.concat(folds)
        report = evaluation_report(frame, frame, n_bootstrap=20)
        at = report[report["level"] == "image"].set_index(["group", "metric"])["value"]
        separate = [table_of(f, n_bootstrap=5).loc["balanced_accuracy", "value"] for f in folds]
        assert at["all", "balanced_accuracy"] == pytest.approx(np.mean(separate), abs=0.01)
        with pytest.raises(UserError, match=r"fold\(s\) 1"):
            evaluation_report(folds[0], frame, n_bootstrap=5)

    def test_images_are_ranked_within_their_fold(self):
        """Every fold's scale is its own, and tells nothing of its model."""
        frame = in_folds(60)
        table = evaluate(frame, None, n_bootstrap=50).set_index("metric")
        parts = [part for _, part in frame.groupby("fold")]
        pairs = [p["label"].sum() * (1 - p["label"]).sum() for p in parts]
        aucs = [roc_auc_score(p["label"], p["log_odds"]) for p in parts]
        assert table.loc["auc", "value"] == pytest.approx(np.average(aucs, weights=pairs))
        assert table.loc["auc", "value"] > roc_auc_score(frame["label"], frame["log_odds"]) + 0.05
        precisions = [average_precision_score(p["label"], p["log_odds"]) for p in parts]
        assert table.loc["average_precision", "value"] == pytest.approx(
            np.average(precisions, weights=[p["label"].sum() for p in parts])
        )
        assert table.loc["auc", "low"] < table.loc["auc", "value"] < table.loc["auc", "high"]
        whole = abstention_table(frame, n_bootstrap=50).iloc[-1]
        assert whole[["auc", "low", "high"]].tolist() == pytest.approx(
            table.loc["auc", ["value", "low", "high"]].tolist()
        )

    def test_the_prior_of_a_fold_is_no_evidence(self):
        """A fold with more positive patients to test on left fewer to train on."""
        frame = in_folds(60)
        share = frame.groupby("fold")["label"].transform("mean")
        constant = frame.assign(log_odds=-share, probability=1 / (1 + np.exp(share)))
        table = evaluate(constant, None, n_bootstrap=20).set_index("metric")
        assert roc_auc_score(frame["label"], constant["log_odds"]) < 0.48
        assert table.loc["auc", ["value", "low", "high"]].tolist() == [0.5, 0.5, 0.5]
        several = constant.assign(probability_a=1 - constant["probability"])
        several = several.rename(columns={"probability": "probability_b"})[
            ["image_id", "patient", "fold", "label", "probability_a", "probability_b"]
        ]
        macro = evaluate(several, None, n_bootstrap=5).set_index("metric")
        assert macro.loc["macro_auc", "value"] == 0.5

    def test_repeats_count_an_image_once(self):
        once = in_folds(40)
        frame = pd.concat([once.assign(fold=f"{repeat}." + once["fold"]) for repeat in (1, 2, 3)])
        report = evaluation_report(frame, frame, n_bootstrap=5)
        whole = report[report["group"] == "all"].groupby("level")[["n_images", "n_positive"]].max()
        assert whole["n_images"].to_dict() == {"image": 160, "breast": 80, "exam": 40}
        positive = once.groupby("patient")["label"].first().sum()
        assert whole["n_positive"].tolist() == [2 * positive, positive, 4 * positive]
        assert reliability_table(frame, n_bootstrap=5)["n_images"].sum() == pytest.approx(160)
        assert abstention_table(frame, n_bootstrap=5)["n_images"].iloc[-1] == 160
        models = {"a": frame, "b": frame}
        assert paired_differences(models, "a", n_bootstrap=5).loc[0, "n_images"] == 160

    def test_one_image_per_patient_without_side_or_exam(self):
        frame = simulate(40, images=1)[["image_id", "patient", "label", "probability"]]
        report = evaluation_report(frame, frame, n_bootstrap=20)
        assert set(report["level"]) == {"image", "exam"}
        assert set(report["group"]) == {"all"}
        values = report.set_index(["level", "metric"])["value"]
        assert values["image", "auc"] == pytest.approx(values["exam", "auc"])


class TestCurves:
    def test_roc_band_holds_the_true_curve_of_two_normals(self):
        curve, band = roc_band(simulate(300), n_bootstrap=300)
        inside = band["false_positive_rate"].between(0.05, 0.95)
        fpr = band.loc[inside, "false_positive_rate"]
        truth = norm.cdf(norm.ppf(fpr) + separation(0.8))
        covered = (band.loc[inside, "low"] <= truth) & (truth <= band.loc[inside, "high"])
        assert covered.mean() > 0.9
        assert curve.iloc[0].tolist() == [0, 0]
        assert curve.iloc[-1].tolist() == [1, 1]

    def test_bands_of_a_perfect_model_have_the_exact_limit_or_none(self):
        frame = simulate(20, images=1)
        frame = frame.assign(probability=frame["label"] * 0.8 + 0.1).drop(columns="log_odds")
        _, band = roc_band(frame, n_bootstrap=100)
        expected = exact_limit(1.0, int(frame["label"].sum()))
        assert band["low"].iloc[:-1].tolist() == pytest.approx([expected] * 100)
        assert band.iloc[-1].tolist() == [1, 1, 1]
        assert (band["high"] == 1).all()
        _, band = precision_recall_band(frame, n_bootstrap=100)
        assert band["low"].isna().all()

    def test_precision_band_surrounds_the_curve_and_ends_at_the_prevalence(self):
        frame = simulate(100)
        curve, band = precision_recall_band(frame, n_bootstrap=200)
        assert curve.iloc[-1].tolist() == pytest.approx([1, frame["label"].mean()])
        middle = np.interp(band["recall"], curve["recall"], curve["precision"])
        inside = band["recall"].between(0.2, 0.95)
        assert ((band["low"] <= middle) & (middle <= band["high"]))[inside].all()

    def test_areas_are_the_numbers_with_folds_and_without(self):
        for frame in (simulate(40), in_folds(40)):
            values = evaluate(frame, None, n_bootstrap=5).set_index("metric")["value"]
            roc, band = roc_band(frame, n_bootstrap=20)
            area = np.trapezoid(roc["true_positive_rate"], roc["false_positive_rate"])
            assert area == pytest.approx(values["auc"])
            on_grid = np.interp(
                band["false_positive_rate"], roc["false_positive_rate"], roc["true_positive_rate"]
            )
            assert ((band["low"] <= on_grid) & (on_grid <= band["high"])).mean() > 0.9
            curve, _ = precision_recall_band(frame, n_bootstrap=5)
            steps = np.diff(curve["recall"], prepend=0) @ curve["precision"]
            assert steps == pytest.approx(values["average_precision"])

    def test_reliability_counts_and_frequencies(self):
        frame = simulate(80)
        table = reliability_table(frame, n_bootstrap=100)
        assert table["n_images"].sum() == len(frame)
        for row in table.itertuples():
            last = row.right == 1
            p = frame["probability"]
            members = frame[(p >= row.left) & ((p < row.right) | last)]
            assert row.frequency == pytest.approx(members["label"].mean())
            assert row.low <= row.frequency <= row.high
            assert row.left <= row.probability <= row.right

    def test_refuse_what_has_no_curve(self):
        with pytest.raises(UserError, match="both classes"):
            roc_band(simulate(5).assign(label=0), n_bootstrap=5)
        with pytest.raises(UserError, match="two classes"):
            precision_recall_band(three_classes(), n_bootstrap=5)


def test_a_result_without_an_interval_says_so():
    row = pd.Series({"value": 1.0, "low": np.nan, "high": np.nan})
    assert interval_text(row) == "1.000 (no interval)"
    assert interval_text(pd.Series({"value": 0.85, "low": 0.8, "high": 0.9})) == (
        "0.850 (0.800 to 0.900)"
    )
