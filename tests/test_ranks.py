"""Several processes train one model: the numbers of one, and any number of them goes on."""

import contextlib
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from sgc_experiments import ranks
from sgc_experiments.batches import ImageSet
from sgc_experiments.checkpoint import load_checkpoint
from sgc_experiments.classifier import ScoreBasedClassifier
from sgc_experiments.errors import UserError
from sgc_experiments.experiments.team import give, team
from sgc_experiments.protocol import predict_together
from sgc_experiments.training import TrainingDiverged, TrainingSettings
from tests.conftest import SMALL, Workspace

# Seven images do not halve; two parts of them neither.
SETTINGS = TrainingSettings(
    budget="steps:8", batch_size=7, accumulate=2, validate_every=4, checkpoint_every=4,
    log_every=1, precision="fp32", device="cpu", progress=False,
)  # fmt: skip
ARGUMENTS = {
    "channels": (4, 8), "hybrid_weight": 0.1, "label_dropout": 0.2, "evaluations": 8,
    "log_snr_sampling": "importance",
}  # fmt: skip
FLOW = {"likelihood": "ode", "ode_solver": "dopri5", "ode_probes": 1, "log_snr_max": 0.0}


def make_images(count: int, seed: int, unlabelled: int = 0) -> ImageSet:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 65536, (count, 16, 16), dtype=np.uint16)
    labels = np.arange(count) % 2
    images[labels == 1, 4:12] //= 2
    labels[:unlabelled] = -1
    return ImageSet(images, labels)


TRAIN, VALIDATION, TEST = make_images(24, 0, 6), make_images(11, 1), make_images(5, 2)


@dataclass(frozen=True)
class Fit:
    """An order to fit a classifier on the images above, and to predict some."""

    settings: TrainingSettings
    diverges: bool = False

    def do(self, **options):
        classifier = ScoreBasedClassifier(image_size=16, **ARGUMENTS)
        if self.diverges:
            _diverge(classifier, at=3)
        result = classifier.fit(TRAIN, VALIDATION, settings=self.settings, **options)
        return classifier, result, predict_together(classifier, TEST.images)

    def take_part(self, kept):
        self.do()


@dataclass(frozen=True)
class Predict:
    """An order to predict by an adaptive solver, with a network that no one has trained."""

    def do(self):
        classifier = ScoreBasedClassifier(image_size=16, **ARGUMENTS | FLOW)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            torch.nn.init.normal_(classifier.network.head.weight, std=0.1)
        classifier.network.eval()
        return predict_together(classifier, TEST.images)

    def take_part(self, kept):
        self.do()


def predict():
    give(Predict())
    return Predict().do()


def _diverge(classifier, *, at):
    loss, calls = classifier.objective.loss, []

    def diverging(*arguments):
        calls.append(1)
        total, metrics = loss(*arguments)
        return total * (float("nan") if len(calls) == at else 1), metrics

    classifier.objective.loss = diverging


def fit(order, **options):
    give(order)
    losses = {}
    fitted = order.do(on_step=lambda m, step: losses.update({step: m["loss"]}), **options)
    return *fitted, losses


def stop_at(step):
    calls = iter(range(1, 100))
    return lambda: next(calls) == step


@dataclass(frozen=True)
class Outcome:
    alone: Any
    together: Any
    flow_alone: Any
    flow_together: Any
    begun_together: Any
    begun_alone: Any
    folder: Path


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """What one process comes to, what two do, and what one begins and the other ends."""
    folder = tmp_path_factory.mktemp("checkpoints")
    whole = Fit(SETTINGS)
    begun_by_one, begun_by_two = folder / "one", folder / "two"
    alone, flow_alone = fit(whole), predict()
    fit(whole, checkpoint_dir=begun_by_one, should_stop=stop_at(5))
    with team(2, "cpu"):
        assert ranks.count() == 2
        together, flow_together = fit(whole), predict()
        begun_alone = fit(whole, checkpoint_dir=begun_by_one)
        fit(whole, checkpoint_dir=begun_by_two, should_stop=stop_at(5))
    assert ranks.count() == 1
    assert load_checkpoint(begun_by_two)[1]["step"] == 5
    begun_together = fit(whole, checkpoint_dir=begun_by_two)
    return Outcome(alone, together, flow_alone, flow_together, begun_together, begun_alone, folder)


def check_same(first, second):
    (one, one_result, one_answer, _), (other, other_result, other_answer, _) = first, second
    weights, others = one.network.state_dict(), other.network.state_dict()
    for name, weight in weights.items():
        assert torch.allclose(weight, others[name], atol=2e-4), name
    assert [entry["step"] for entry in one_result.history] == [4, 8]
    for entry, same in zip(one_result.history, other_result.history, strict=True):
        assert entry == pytest.approx(same, rel=1e-3, abs=1e-5)
    assert one_answer.log_odds == pytest.approx(other_answer.log_odds, rel=1e-2, abs=1e-2)
    assert one.plan.draws == other.plan.draws


def test_two_processes_come_to_the_loss_curve_of_one(outcome):
    losses, same = outcome.alone[3], outcome.together[3]
    assert sorted(losses) == sorted(same) == list(range(1, 9))
    assert list(losses.values()) == pytest.approx(list(same.values()), rel=1e-4)
    assert len(set(losses.values())) == 8
    check_same(outcome.alone, outcome.together)


def test_what_two_have_begun_one_ends(outcome):
    assert sorted(outcome.begun_together[3]) == [6, 7, 8]
    check_same(outcome.alone, outcome.begun_together)


def test_what_one_has_begun_two_end(outcome):
    assert sorted(outcome.begun_alone[3]) == [6, 7, 8]
    check_same(outcome.alone, outcome.begun_alone)


def test_the_adaptive_flow_of_each_image_is_its_own(outcome):
    """Solvers take another number of evaluations for every image; no process waits in between."""
    one, two = outcome.flow_alone, outcome.flow_together
    assert one.log_odds == pytest.approx(two.log_odds, rel=0.02, abs=0.05)
    assert one.evaluations == pytest.approx(two.evaluations, rel=0.05)


def test_a_loss_that_is_not_finite_ends_all_processes():
    before = set(psutil.Process().children())
    order = Fit(SETTINGS, diverges=True)
    with pytest.raises(TrainingDiverged, match="step 1"), team(2, "cpu"):
        fit(order)
    left = set(psutil.Process().children()) - before
    assert not [p for p in left if "spawn_main" in " ".join(p.cmdline())]
    assert ranks.count() == 1


def test_one_device_is_not_shared():
    with pytest.raises(UserError, match="cuda:1"), team(2, "cuda:1"):
        pass


def test_a_launcher_and_the_parameter_must_agree(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match=r"processes=2.*4"), team(2, "cpu"):
        pass


ARGUMENTS_OF_TRAIN = [part for k, v in SMALL.items() for part in (f"--{k}", v)]
PRECISE = ["--precision", "fp32"]


def start(workspace: Workspace, *launcher: str, arguments=()) -> subprocess.Popen:
    command = [sys.executable, *launcher, "-m", "sgc_experiments", "train", *ARGUMENTS_OF_TRAIN]
    return subprocess.Popen(
        [*command, *PRECISE, *arguments],
        cwd=workspace.folder,
        env=workspace.environment(),
        stdout=subprocess.DEVNULL,
        stderr=(workspace.folder / "stderr.txt").open("a"),
    )


def finish(process: subprocess.Popen, workspace: Workspace) -> None:
    assert process.wait(timeout=900) == 0, (workspace.folder / "stderr.txt").read_text()[-3000:]


def losses_of(run, workspace: Workspace) -> list[float]:
    history = workspace.client.get_metric_history(run.info.run_id, "loss")
    assert len({metric.step for metric in history}) == len(history)
    return [metric.value for metric in sorted(history, key=lambda metric: metric.step)]


def test_a_killed_helper_costs_a_minute_and_one_process_goes_on(workspace):
    process = start(workspace, arguments=["--processes", "2", "--checkpoint_every", "5"])
    checkpoints = workspace.cache / "runs"
    while not any(checkpoints.glob("*/*/checkpoint-0000000*")):
        assert process.poll() is None, (workspace.folder / "stderr.txt").read_text()[-3000:]
        time.sleep(0.05)
    (helper,) = (p for p in psutil.Process(process.pid).children() if _helps(p))
    helper.send_signal(signal.SIGKILL)
    assert process.wait(timeout=300) == 2
    (run,) = workspace.runs()
    assert run.info.status == "FAILED"
    assert "has ended" in run.data.tags["failure_reason"]
    assert run.data.tags["processes"] == "2"
    finish(start(workspace, arguments=["--checkpoint_every", "5"]), workspace)
    (run,) = workspace.runs()
    assert run.info.status == "FINISHED"
    assert run.data.tags["processes"] == "1"
    assert "config.processes" not in run.data.params
    assert len(losses_of(run, workspace)) == 6  # every ten steps of 60


def _helps(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "spawn_main" in " ".join(process.cmdline())
    return False


@pytest.mark.slow
def test_accelerate_launch_trains_as_the_parameter_does(workspace):
    finish(start(workspace), workspace)
    finish(start(workspace, arguments=["--processes", "2"]), workspace)
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    finish(start(workspace, *launcher), workspace)
    runs = workspace.runs()
    assert [run.data.tags["processes"] for run in runs] == ["2", "2", "1"]
    for run in runs[:2]:
        assert losses_of(run, workspace) == pytest.approx(losses_of(runs[2], workspace), rel=0.01)
        assert run.data.metrics["test_auc"] == pytest.approx(
            runs[2].data.metrics["test_auc"], abs=0.02
        )
