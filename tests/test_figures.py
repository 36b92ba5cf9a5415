"""Every figure opens, is labelled, fits its canvas, and shows the numbers that it was given."""

import functools

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from sgc_experiments import figures
from sgc_experiments.comparison import paired_differences
from sgc_experiments.curves import abstention_table
from sgc_experiments.errors import UserError
from sgc_experiments.evaluation import evaluate
from sgc_experiments.figures.tuning import pareto_front
from sgc_experiments.learning_curves import Cell, learning_curves
from sgc_experiments.predictions import one_vs_rest
from tests.simulated_predictions import simulate

FEW = {"n_bootstrap": 25}
MODELS = {"SGC": simulate(30), "ResNet-18": simulate(30, auc=0.7, model_seed=1)}


def history():
    step = np.arange(0, 100, 5)
    rare = np.where(step % 20 == 0, 0.5 + step / 400, np.nan)
    loss = np.exp(-step / 40)
    return pd.DataFrame(
        {"step": step, "train_loss": loss, "validation_loss": rare * loss, "validation_auc": rare}
    )


def images(n, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 65536, (n, size, size), dtype=np.uint16)


def explanation(outcome="true positive", log_odds=2.0, box=(4, 4, 10, 11)):
    evidence = np.random.default_rng(1).normal(size=(16, 16))
    return figures.Explanation(images(1)[0], evidence, box, outcome, log_odds, 0.3, "typical")


@functools.cache
def curves():
    cells = [
        Cell(model, size, seed, simulate(20, auc=0.6 + 0.001 * size, model_seed=seed + k))
        for k, model in enumerate(
            ("SGC", "a rather long name of a model", "vit", "swin", "convnext")
        )
        for size in (25, 50, 100)
        for seed in (0, 1)
    ]
    return learning_curves(cells, n_bootstrap=30)


def costs():
    return pd.DataFrame(
        {"model": ["a", "b"], "cost": [3.0, 900.0], "value": [0.7, 0.8],
         "low": [0.6, 0.75], "high": [0.75, 0.9]}
    )  # fmt: skip


def trials():
    rng = np.random.default_rng(0)
    n = 20
    table = pd.DataFrame(
        {
            "number": range(n),
            "state": ["pruned" if k % 5 == 4 else "complete" for k in range(n)],
            "defaults": [k == 0 for k in range(n)],
            "val_auc": rng.uniform(0.5, 0.9, n),
            "val_bits_per_dim": rng.uniform(9, 12, n),
            "last_auc": rng.uniform(0.4, 0.8, n),
            "param.learning_rate": np.exp(rng.uniform(-8, -5, n)),
            "param.log_snr_max": rng.uniform(6, 14, n),
            "param.evaluations": rng.choice(["8", "16", "32"], n),
            "param.channels": rng.choice(["24-48-96", "32-64-128", "48-96-192"], n),
            "param.weighting": rng.choice(["elbo", "simple", "min_snr"], n),
        }
    )
    sampled = table["param.weighting"] != "elbo"
    table["param.sde"] = np.where(sampled, rng.choice(["vp", "cosine"], n), None)
    pruned = table["state"] == "pruned"
    table.loc[pruned, ["val_auc", "val_bits_per_dim"]] = np.nan
    return table


def abstention(models, **options):
    return figures.abstention(
        {name: abstention_table(frame, **options) for name, frame in models.items()}
    )


MAKERS = {
    "roc": lambda: figures.roc(MODELS, **FEW),
    "roc_of_seven": lambda: figures.roc(
        {f"model-{k}": simulate(20, model_seed=k) for k in range(7)}, **FEW
    ),
    "precision_recall": lambda: figures.precision_recall(MODELS, **FEW),
    "reliability": lambda: figures.reliability(MODELS, **FEW),
    "abstention": lambda: abstention(MODELS, **FEW),
    "confusion": lambda: figures.confusion([0, 1, 1, 0], [0, 1, 0, 0], ("benign", "malignant")),
    "confusion_of_four": lambda: figures.confusion(
        np.arange(60) % 4, np.arange(60) % 3, [f"class {c}" for c in range(4)]
    ),
    "log_odds_histogram": lambda: figures.log_odds_histogram(MODELS["SGC"]),
    "training_curves": lambda: figures.training_curves(history(), best_step=60),
    "learning_curves": lambda: figures.learning_curves(curves().table(), target=0.7),
    "forest": lambda: figures.forest(paired_differences(MODELS, "SGC", **FEW)),
    "forest_by_size": lambda: figures.forest(curves().differences("SGC")),
    "cost": lambda: figures.cost(costs()),
    "tuning_history": lambda: figures.tuning_history(trials()),
    "tuning_history_of_bits": lambda: figures.tuning_history(trials(), metric="val_bits_per_dim"),
    "tuning_importance": lambda: figures.tuning_importance({"learning_rate": 0.7, "sde": 0.3}),
    "tuning_pareto": lambda: figures.tuning_pareto(trials()),
}
SHEETS = {
    "sample_sheet": lambda: figures.sample_sheet(
        images(20), np.arange(20) % 2, images(9, seed=1), np.arange(9) % 2, ("benign", "malignant")
    ),
    "explanation_sheet": lambda: figures.explanation_sheet(
        [explanation("false negative", -1.0, None), *[explanation()] * 5]
    ),
    "one_explanation": lambda: figures.explanation_sheet([explanation()]),
    "tuning_slices": lambda: figures.tuning_slices(trials(), log=["learning_rate"]),
    "tuning_parallel": lambda: figures.tuning_parallel(trials(), log=["learning_rate"]),
}


@functools.cache
def made(name):
    """A figure of the lists above, drawn once for all tests."""
    return (MAKERS | SHEETS)[name]()


def drawn(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def texts(figure):
    return [t for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible()]


def said(figure):
    return " | ".join(text.get_text() for text in texts(figure))


@pytest.mark.parametrize("name", [*MAKERS, *SHEETS])
def test_saves_a_small_png_that_opens_with_every_text_inside(name, tmp_path):
    figure = made(name)
    path = figures.save_png(figure, tmp_path / f"{name}.png")
    assert path.stat().st_size <= 150_000
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) >= 150
        assert np.asarray(image.convert("L")).std() > 5
    renderer = drawn(figure)
    canvas = figure.bbox
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            # Ticks outside the view exist, but are not drawn.
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                tick.label1.set_visible(low <= tick.get_loc() <= high)
    for text in texts(figure):
        box = text.get_window_extent(renderer)
        assert box.x0 >= canvas.x0 - 1, text.get_text()
        assert box.y0 >= canvas.y0 - 1, text.get_text()
        assert box.x1 <= canvas.x1 + 1, text.get_text()
        assert box.y1 <= canvas.y1 + 1, text.get_text()


@pytest.mark.parametrize("name", MAKERS)
def test_axes_are_labelled(name):
    figure = made(name)
    bottom = [a for a in figure.axes if a.get_subplotspec() and a.get_subplotspec().is_last_row()]
    assert all(axes.get_xlabel() for axes in bottom)
    assert all(axes.get_ylabel() for axes in figure.axes)


def test_the_legend_quotes_the_evaluation():
    row = evaluate(MODELS["SGC"], None, **FEW).set_index("metric").loc["auc"]
    quoted = f"SGC: AUC {row['value']:.2f} ({row['low']:.2f}–{row['high']:.2f})"
    assert quoted in said(made("roc"))
    prevalence = MODELS["SGC"]["label"].mean()
    assert f"prevalence {prevalence:.2f}" in said(made("precision_recall"))
    assert "ECE" in said(made("reliability"))


def test_confusion_counts_and_percentages():
    figure = figures.confusion([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1], ("benign", "malignant"))
    shown = said(figure)
    for text in ("3\n75 %", "1\n25 %", "0\n0 %", "2\n100 %", "benign\n(n = 4)"):
        assert text in shown
    with pytest.raises(UserError, match="class indices 0 … 1"):
        figures.confusion([0, 2], [0, 0], ("benign", "malignant"))
    with pytest.raises(UserError, match="class indices"):
        figures.confusion([], [], ("benign", "malignant"))


def test_repeats_count_an_image_once():
    labels, called = [0, 0, 0, 0, 1, 1] * 2, [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1]
    shown = said(figures.confusion(labels, called, ("benign", "malignant"), repeats=2))
    for text in ("3.5\n88 %", "0.5\n12 %", "2\n100 %", "benign\n(n = 4)"):
        assert text in shown
    once = MODELS["SGC"]
    twice = pd.concat([once.assign(fold=fold) for fold in ("1.1", "2.1")])
    drawn = [figures.log_odds_histogram(frame) for frame in (once, twice)]
    heights = [figure.axes[0].get_ylim()[1] for figure in drawn]
    assert heights[1] <= heights[0]  # of more rows the bins are narrower
    assert all(f"malignant (n = {once['label'].sum()})" in said(figure) for figure in drawn)


def test_explanations_name_the_outcome_and_centre_the_map():
    figure = figures.explanation_sheet(
        [explanation(), explanation("false negative", -2.0, box=None)],
    )
    shown = said(figure)
    assert "true positive" in shown
    assert "false negative" in shown
    assert "p = 0.88 (0.80–0.93)" in shown  # the logistic of 2 and of 2 ± 1.96 · 0.3
    bar = next(axes for axes in figure.axes if "nats" in axes.get_ylabel())
    low, high = bar.get_ylim()
    assert low == pytest.approx(-high)
    boxes = [len(axes.patches) for axes in figure.axes[:4]]
    assert boxes == [1, 0, 1, 0]
    with pytest.raises(UserError, match="no image"):
        figures.explanation_sheet([])


def test_a_map_keeps_its_units_at_any_resolution():
    coarse = np.full((32, 32), 0.01)  # 10.24 nats in all
    fine = np.full((64, 64), 0.0025)
    for evidence in (coarse, fine):
        case = figures.Explanation(evidence, evidence, None, "true positive", 10.24, 0.1)
        figure = figures.explanation_sheet([case])
        bar = next(axes for axes in figure.axes if "nats" in axes.get_ylabel())
        assert bar.get_ylim()[1] == pytest.approx(0.1024)  # a hundredth of the image's


def test_training_and_validation_share_a_panel():
    figure = figures.training_curves(history())
    assert [axes.get_ylabel() for axes in figure.axes] == ["Loss", "AUC"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 1]
    with pytest.raises(UserError, match="at least one series"):
        figures.training_curves(history()[["step"]])


def test_forest_states_difference_interval_and_corrected_p():
    table = paired_differences(MODELS, "SGC", metrics=["auc"], **FEW)
    row = table.iloc[0]
    shown = said(figures.forest(table)).replace("−", "-")
    assert f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})" in shown
    assert f"p = {row['p_holm']:.3f}" in shown
    assert "Difference in AUC to SGC" in shown


def test_several_classes_are_drawn_one_against_the_rest():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), 30)
    frame = pd.DataFrame(
        {"image_id": [str(i) for i in range(30)], "patient": [str(i) for i in range(30)],
         "label": np.arange(30) % 3, **{f"probability_{c}": p[:, k] for k, c in enumerate("abc")}}
    )  # fmt: skip
    assert "c: AUC" in said(figures.roc(one_vs_rest(frame), **FEW))


FIVE = simulate(5, images=1)


@pytest.mark.parametrize(
    "draw", [figures.roc, figures.precision_recall, figures.reliability, abstention]
)
def test_five_images_are_enough_and_one_class_is_refused(draw, tmp_path):
    figures.save_png(draw({"m": FIVE}, **FEW), tmp_path / "five.png")
    constant = FIVE.assign(probability=0.5, log_odds=0.0)
    figures.save_png(draw({"m": constant}, **FEW), tmp_path / "constant.png")
    with pytest.raises(UserError, match=r"both classes|1 of 2 classes"):
        draw({"m": FIVE.assign(label=1)}, **FEW)


def test_small_and_empty_inputs(tmp_path):
    one_class = FIVE.assign(label=0)
    figures.save_png(figures.log_odds_histogram(one_class), tmp_path / "histogram.png")
    figures.save_png(
        figures.sample_sheet(images(1), np.array([0]), images(0), np.array([], int), ("a", "b")),
        tmp_path / "sheet.png",
    )
    single = figures.learning_curves(
        learning_curves([Cell("m", 25, 0, simulate(9))], n_bootstrap=20).table()
    )
    figures.save_png(single, tmp_path / "single.png")
    for draw in (figures.forest, figures.learning_curves, figures.cost):
        with pytest.raises(UserError):
            draw(costs().iloc[:0])
    with pytest.raises(UserError, match="positive cost"):
        figures.cost(costs().assign(cost=0.0))


def test_drawing_leaves_the_callers_matplotlib_alone():
    before = dict(matplotlib.rcParams)
    MAKERS["cost"]()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(("metric", "running"), [("val_auc", "max"), ("val_bits_per_dim", "min")])
def test_the_history_of_a_search_follows_the_best_so_far(metric, running):
    figure = figures.tuning_history(trials(), metric=metric)
    (line,) = (line for line in figure.axes[0].lines if line.get_label() == "best so far")
    values = trials()[metric].dropna()
    assert line.get_ydata() == pytest.approx(values.agg(f"cum{running}").to_numpy())


def test_a_point_of_the_pareto_front_is_beaten_by_none():
    first, second = np.array([1.0, 2, 3, 2, 3]), np.array([3.0, 2, 1, 1, 1])
    assert pareto_front(first, second).tolist() == [True, True, True, False, True]


def test_a_search_without_a_complete_trial_cannot_be_drawn():
    nothing = trials().assign(state="pruned")
    for draw in (figures.tuning_history, figures.tuning_slices, figures.tuning_pareto):
        with pytest.raises(UserError, match="no complete trial"):
            draw(nothing)
    with pytest.raises(UserError, match="two complete trials"):
        figures.tuning_importance({})
