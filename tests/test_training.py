"""The loop: budgets, order, resumption to the last digit, and clear ends."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sgc_experiments.augmentation import AugmentationSettings
from sgc_experiments.batches import BatchOrder, from_model_range, to_model_range
from sgc_experiments.checkpoint import load_checkpoint, save_checkpoint
from sgc_experiments.errors import UserError
from sgc_experiments.training import ImageSet, TrainingDiverged, TrainingSettings, train
from sgc_experiments.training_settings import choose_device, has_fast_bf16

SETTINGS = TrainingSettings(
    budget="steps:12", batch_size=4, validate_every=4, checkpoint_every=3, progress=False
)


class Classification:
    """The smallest discriminative objective; dropout in the network tests the generators."""

    monitor = "entropy"

    def loss(self, network, images, labels, generator, moment):
        loss = nn.functional.cross_entropy(network(images), labels)
        return loss, {"entropy": float(loss.detach())}

    def validate(self, network, images, labels):
        with torch.no_grad():
            output = network(to_model_range(images))
        loss = nn.functional.cross_entropy(output, torch.as_tensor(labels))
        return {"entropy": float(loss)}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        assert not state


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.3), nn.Linear(8, 2))


def make_images(count=20, seed=0):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 65536, (count, 8, 8), dtype=np.uint16)
    labels = np.arange(count) % 2
    images[labels == 1, 2:6] //= 2
    return ImageSet(images, labels)


def run(settings=SETTINGS, objective=None, **options):
    network = make_network()
    result = train(
        network,
        objective or Classification(),
        make_images(),
        make_images(10, seed=1),
        settings=settings,
        **options,
    )
    return network.state_dict(), result


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_same_seed_same_numbers_to_the_last_digit():
    weights, result = run()
    again, result_again = run()
    assert same(weights, again)
    assert result.history == result_again.history
    other, _ = run(replace(SETTINGS, seed=1))
    assert not same(weights, other)


def test_the_callers_generators_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    network = nn.Linear(2, 2)  # uses the generator; then training must not
    torch.manual_seed(5)
    run()
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), expected)
    assert network is not None


@pytest.mark.parametrize("stop_at", [1, 3, 7, 11])
def test_an_interrupted_run_resumes_to_the_same_numbers(tmp_path, stop_at):
    weights, result = run()
    steps = []

    def should_stop():
        steps.append(1)
        return len(steps) == stop_at

    _, interrupted = run(checkpoint_dir=tmp_path, should_stop=should_stop)
    assert (interrupted.stopped, interrupted.steps) == ("interrupted", stop_at)
    resumed, result_resumed = run(checkpoint_dir=tmp_path)
    assert same(weights, resumed)
    assert result_resumed.history == result.history
    assert result_resumed.best_step == result.best_step


class Interrupted(Classification):
    """Ctrl-C in the middle of a loss or of a validation, once its statistics have changed."""

    def __init__(self, where, call):
        self.where, self.call = where, call
        self.seen = torch.zeros(1)

    def count(self, where):
        if where == self.where:
            self.call -= 1
            if self.call == 0:
                signal.raise_signal(signal.SIGINT)

    def loss(self, network, images, labels, generator, moment):
        self.seen += images.mean()
        self.count("loss")
        loss, metrics = super().loss(network, images, labels, generator, moment)
        return loss, metrics | {"seen": float(self.seen)}

    def validate(self, network, images, labels):
        self.count("validate")
        return super().validate(network, images, labels)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"].clone()


@pytest.mark.parametrize(("where", "call"), [("loss", 1), ("loss", 7), ("validate", 2)])
def test_an_interruption_in_the_middle_loses_no_step(tmp_path, where, call):
    settings = replace(SETTINGS, log_every=1, checkpoint_every=100)
    expected, told, seen = {}, {}, []
    weights, result = run(
        settings, Interrupted("", 0), on_step=lambda m, step: expected.update({step: m})
    )

    def tell(metrics, step):
        seen.append(step)
        told[step] = metrics

    with pytest.raises(KeyboardInterrupt):
        run(settings, Interrupted(where, call), checkpoint_dir=tmp_path, on_step=tell)
    assert load_checkpoint(tmp_path)[1]["step"] == (call - 1 if where == "loss" else 8)
    resumed, again = run(settings, Interrupted("", 0), checkpoint_dir=tmp_path, on_step=tell)
    assert same(weights, resumed)
    assert again.history == result.history
    assert told == expected
    assert seen == list(range(1, 13))


def test_a_signal_in_the_middle_of_a_step_waits_for_its_end(tmp_path, monkeypatch):
    """Half of the weights updated would be a state that no run without the signal has."""
    weights, _ = run()
    step = torch.optim.AdamW.step
    calls = []

    def interrupted_step(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 6:
            signal.raise_signal(signal.SIGINT)
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted_step)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint_dir=tmp_path)
    assert load_checkpoint(tmp_path)[1]["step"] == 6
    resumed, _ = run(checkpoint_dir=tmp_path)
    assert same(weights, resumed)


def test_moments_keep_the_layout_of_their_weights(tmp_path):
    """Saved as rows of an array, used by an optimiser that walks through memory."""

    def trained(**options):
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)]
        network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 2))
        network.to(memory_format=torch.channels_last)
        sets = make_images(), make_images(10, seed=1)
        train(network, Classification(), *sets, settings=SETTINGS, **options)
        return network.state_dict()

    weights = trained()
    steps = iter(range(100))
    trained(checkpoint_dir=tmp_path, should_stop=lambda: next(steps) == 6)
    assert same(weights, trained(checkpoint_dir=tmp_path))


def test_a_finished_training_is_not_trained_further(tmp_path):
    """What comes after training can be killed too, and then training is asked for again."""
    weights, result = run(checkpoint_dir=tmp_path)
    again, result_again = run(checkpoint_dir=tmp_path, on_step=lambda metrics, step: 1 / 0)
    assert same(weights, again)
    assert (result_again.steps, result_again.history) == (result.steps, result.history)
    assert result_again.stopped == result.stopped


KILLED = """
import sys, time
from dataclasses import replace
from pathlib import Path
from tests.test_training import SETTINGS, run

def report(metrics, step):
    print(step, flush=True)
    time.sleep(0.2)

run(replace(SETTINGS, log_every=1), checkpoint_dir=Path(sys.argv[1]), on_step=report)
"""


def test_a_killed_process_resumes_to_the_same_numbers(tmp_path):
    weights, result = run()
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    for line in process.stdout:
        if int(line) >= 8:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert load_checkpoint(tmp_path)[1]["step"] in (6, 9)
    resumed, result_resumed = run(checkpoint_dir=tmp_path)
    assert same(weights, resumed)
    assert result_resumed.history == result.history


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path):
    weights, _ = run()
    run(checkpoint_dir=tmp_path)
    files = sorted(tmp_path.glob("checkpoint-*"))
    assert len(files) == 2
    content = bytearray(files[-1].read_bytes())
    content[len(content) // 2] ^= 1
    files[-1].write_bytes(content)
    assert load_checkpoint(tmp_path)[1]["step"] == 9
    resumed, _ = run(checkpoint_dir=tmp_path)
    assert same(weights, resumed)


def test_a_half_written_checkpoint_is_no_checkpoint(tmp_path):
    path = save_checkpoint(tmp_path, 5, {"a/b": torch.arange(4)}, {"step": 5})
    (tmp_path / f".{path.name}.123").write_bytes(path.read_bytes()[:30])
    tensors, state = load_checkpoint(tmp_path)
    assert (tensors["a/b"].tolist(), state) == ([0, 1, 2, 3], {"step": 5})
    path.write_bytes(path.read_bytes()[:-1])
    assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    "changed", [{"learning_rate": 1e-3}, {"seed": 1}, {"augmentation": AugmentationSettings.none()}]
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, changed):
    run(checkpoint_dir=tmp_path)
    with pytest.raises(UserError, match="other settings"):
        run(replace(SETTINGS, **changed), checkpoint_dir=tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    run(checkpoint_dir=tmp_path, model={"hybrid_weight": 0.01})
    run(checkpoint_dir=tmp_path, model={"hybrid_weight": 0.01})
    with pytest.raises(UserError, match="a training of another model"):
        run(checkpoint_dir=tmp_path, model={"hybrid_weight": 0.1})


def test_a_loss_that_is_not_finite_stops_with_step_and_images(tmp_path):
    class Diverging(Classification):
        def loss(self, network, images, labels, generator, moment):
            loss, metrics = super().loss(network, images, labels, generator, moment)
            self.calls = getattr(self, "calls", 0) + 1
            return loss * (math.nan if self.calls == 6 else 1), metrics

    with pytest.raises(TrainingDiverged, match="step 5") as caught:
        run(objective=Diverging(), checkpoint_dir=tmp_path)
    order = BatchOrder(make_images().labels, batch_size=4, balanced=True, seed=0)
    assert caught.value.indices == order.batch(5).tolist()
    tensors, state = load_checkpoint(tmp_path)
    assert state["step"] == 5
    assert all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_batch_can_be_left_out(bad, caplog, tmp_path):
    class Diverging(Classification):
        def loss(self, network, images, labels, generator, moment):
            loss, metrics = super().loss(network, images, labels, generator, moment)
            self.calls = getattr(self, "calls", 0) + 1
            return loss * (bad if self.calls in (3, 6) else 1), metrics

    told = {}
    settings = replace(SETTINGS, nonfinite="skip", log_every=1)
    weights, result = run(
        settings, Diverging(), checkpoint_dir=tmp_path, on_step=lambda m, s: told.update({s: m})
    )
    assert result.steps == 12
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert told[3] == {"skipped_steps": 1.0}
    assert told[6] == {"skipped_steps": 2.0}
    assert "loss" in told[7]
    assert "step 5" in caplog.text


def test_not_every_batch_can_be_left_out():
    class Diverged(Classification):
        def loss(self, network, images, labels, generator, moment):
            loss, metrics = super().loss(network, images, labels, generator, moment)
            return loss * math.nan, metrics

    with pytest.raises(TrainingDiverged, match="step 100"):
        run(replace(SETTINGS, budget="steps:200", nonfinite="skip"), Diverged())


def test_a_jump_of_the_clock_changes_no_budget(monkeypatch):
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 86_400)
    jumps = []

    def jump(metrics, step):
        jumps.append(step)
        monkeypatch.setattr(time, "time", lambda: real() + 86_400 * len(jumps))

    _, result = run(replace(SETTINGS, budget="seconds:1", log_every=1), on_step=jump)
    assert len(jumps) > 1
    assert 1 <= result.seconds < 10


class Scripted(Classification):
    """Validation values as told."""

    def __init__(self, values):
        self.values = iter(values)

    def validate(self, network, images, labels):
        return {"entropy": next(self.values)}


def test_patience_stops_and_the_best_average_is_kept():
    settings = replace(SETTINGS, budget="steps:100", patience=2)
    seen = {}
    objective = Scripted([3.0, 1.0, 2.0, math.nan])
    original = objective.validate

    def validate(network, images, labels):
        metrics = original(network, images, labels)
        seen[metrics["entropy"]] = {k: v.clone() for k, v in network.state_dict().items()}
        return metrics

    objective.validate = validate
    weights, result = run(settings, objective=objective)
    assert (result.stopped, result.steps, result.best_step) == ("patience", 16, 8)
    assert same(weights, seen[1.0])


@pytest.mark.parametrize(("budget", "steps"), [("steps:7", 7), ("images:30", 8), ("images:32", 8)])
def test_a_budget_ends_the_training(budget, steps):
    _, result = run(replace(SETTINGS, budget=budget))
    assert (result.steps, result.images, result.stopped) == (steps, 4 * steps, "budget")
    assert result.history[-1]["step"] == steps


def test_a_budget_of_seconds_ends_the_training():
    started = time.monotonic()
    _, result = run(replace(SETTINGS, budget="seconds:1"))
    assert result.stopped == "budget"
    assert 1 <= time.monotonic() - started < 10


def test_without_validation_images_the_last_weights_are_kept():
    network = make_network()
    empty = ImageSet(np.zeros((0, 8, 8), np.uint16), np.zeros(0, np.int64))
    result = train(network, Classification(), make_images(), empty, settings=SETTINGS)
    assert (result.best_step, result.history) == (12, [])


def test_metrics_reach_the_callback_and_are_json():
    calls = []
    run(replace(SETTINGS, log_every=6), on_step=lambda metrics, step: calls.append((step, metrics)))
    assert [step for step, _ in calls] == [4, 6, 8, 12]
    assert {"loss", "learning_rate", "entropy"} <= set(calls[0][1])
    json.dumps(calls)


def test_accumulated_parts_make_the_step_of_the_whole_batch():
    def weights(**options):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.SiLU(), nn.Linear(8, 2))
        options = {"budget": "steps:3", "batch_size": 7, "precision": "fp32"} | options
        settings = replace(SETTINGS, **options)
        train(network, Classification(), make_images(), make_images(10, seed=1), settings=settings)
        return network.state_dict()

    whole = weights()
    for parts in (2, 3, 7):
        cut = weights(accumulate=parts)
        assert all(torch.allclose(whole[name], cut[name], atol=1e-6) for name in whole)
    assert not same(whole, weights(seed=1))


class TestBatchOrder:
    LABELS = np.array([0] * 12 + [1] * 3)

    def test_unbalanced_epochs_are_permutations(self):
        order = BatchOrder(self.LABELS, batch_size=5, balanced=False, seed=0)
        epochs = [np.concatenate([order.batch(3 * e + i) for i in range(3)]) for e in range(3)]
        assert all(sorted(epoch) == list(range(15)) for epoch in epochs)
        assert not np.array_equal(epochs[0], epochs[1])

    def test_balanced_batches_share_the_classes_and_miss_no_image(self):
        order = BatchOrder(self.LABELS, batch_size=6, balanced=True, seed=0)
        batches = [order.batch(i) for i in range(8)]
        assert all(self.LABELS[batch].sum() == 3 for batch in batches)
        counts = Counter(np.concatenate(batches).tolist())
        assert {counts[i] for i in range(12)} == {2}
        assert {counts[i] for i in range(12, 15)} == {8}

    @pytest.mark.parametrize("balanced", [True, False])
    @pytest.mark.parametrize("share", [0.25, 0.5, 0.7])
    def test_images_without_a_label_have_their_share(self, balanced, share):
        labels = np.array([0] * 12 + [-1] * 40 + [1] * 3)
        order = BatchOrder(labels, batch_size=20, balanced=balanced, seed=0, unlabelled_share=share)
        seen = np.concatenate([order.batch(i) for i in range(12)])
        assert np.mean(labels[seen] < 0) == pytest.approx(share)
        assert set(seen) == set(range(len(labels)))
        if balanced:
            assert abs(np.sum(labels[seen] == 0) - np.sum(labels[seen] == 1)) <= 1
        for step in range(12):
            assert np.sum(labels[order.batch(step)] < 0) == pytest.approx(20 * share, abs=1)

    def test_a_batch_needs_none_before_it(self):
        first, second = (
            BatchOrder(self.LABELS, batch_size=7, balanced=True, seed=3) for _ in range(2)
        )
        for step in range(20):
            first.batch(step)
        assert np.array_equal(first.batch(20), second.batch(20))


def test_model_range_spans_minus_one_to_one_and_back():
    images = np.array([[[0, 65535], [1, 32768]]], dtype=np.uint16)
    x = to_model_range(images)
    assert (x.min(), x.max()) == (-1, 1)
    assert np.array_equal(from_model_range(x), images)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"budget": "epochs:3"}, "budget"),
        ({"budget": "steps:0"}, "budget"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"unlabelled_share": 1.0}, "unlabelled_share"),
        ({"precision": "fp16"}, "precision"),
        ({"nonfinite": "ignore"}, "nonfinite"),
        ({"patience": -1}, "patience"),
    ],
)
def test_a_wrong_setting_is_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        TrainingSettings(**arguments)


def test_grouped_convolutions_keep_full_precision_on_a_cpu_alone():
    grouped = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=4))
    plain = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3))
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert not has_fast_bf16(cpu, grouped)
    assert has_fast_bf16(gpu, grouped) == torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    hardware = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    assert has_fast_bf16(cpu, plain) == hardware


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(UserError, match="device=cuda:77 is not there"):
        choose_device("cuda:77")
