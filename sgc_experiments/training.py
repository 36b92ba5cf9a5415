"""The training loop, one for generative and discriminative models.

What is trained is told by an `Objective`; the loop knows batches, the optimiser, the moving average
of the weights, validation and checkpoints. The order of the images and all noise are functions of
(seed, step): a run repeats itself to the last digit on the same CPU, and a checkpoint needs no
generator state for a resumed run to equal an unbroken one.
"""

import hashlib
import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from sgc_experiments.augmentation import augment
from sgc_experiments.batches import BatchOrder, ImageSet, stream_seed, to_model_range
from sgc_experiments.checkpoint import load_checkpoint, save_checkpoint
from sgc_experiments.errors import UserError
from sgc_experiments.interruption import held_back
from sgc_experiments.moving_average import moving_average
from sgc_experiments.progress import progress_bar
from sgc_experiments.training_settings import (
    Budget,
    TrainingSettings,
    choose_device,
    has_fast_bf16,
)

__all__ = [
    "Budget",
    "ImageSet",
    "Objective",
    "TrainingDiverged",
    "TrainingResult",
    "TrainingSettings",
    "to_model_range",
    "train",
]

# More batches than this are no accident.
_MOST_SKIPPED = 100

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """What came of a training run.

    Attributes:
        steps: Optimiser steps taken.
        images: Images seen.
        seconds: Wall time, over all resumptions.
        best_step: The step whose weights were kept.
        monitor: The validation metric that decided so; lower is better.
        best_value: Its value there.
        stopped: "budget", "patience" or "interrupted".
        history: One dict per validation, with its "step".
    """

    steps: int
    images: int
    seconds: float
    best_step: int
    monitor: str
    best_value: float
    stopped: str
    history: list[dict[str, float]]


class TrainingDiverged(UserError):  # noqa: N818 - an event, named as such
    """The loss is not finite.

    Attributes:
        step: At which it happened.
        indices: Of the batch's images in the training set.
    """

    def __init__(self, step: int, indices: Sequence[int]) -> None:
        super().__init__(
            f"The training loss is not finite at step {step} (training images "
            f"{', '.join(map(str, indices))}): lower learning_rate, or use precision=fp32."
        )
        self.step, self.indices = step, list(indices)


class Objective(Protocol):
    """What a model is trained for; it is given the network that `train` is.

    `monitor` names the metric of `validate` that chooses the weights to keep; lower is better.
    Running statistics, if any, are in `state_dict` and `load_state_dict`.
    """

    monitor: str

    def loss(
        self, network: Any, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Scalar loss and metrics of a batch (B, 1, S, S) in [−1, 1] with labels int64 (B,)."""
        ...

    def validate(self, network: Any, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Metrics of the averaged network, in evaluation mode, on uint16 images."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Running statistics; empty if there are none."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> Any:
        """Put back what `state_dict` gave."""
        ...


def train(
    network: nn.Module,
    objective: Objective,
    train_set: ImageSet,
    validation_set: ImageSet,
    *,
    settings: TrainingSettings,
    checkpoint_dir: Path | None = None,
    on_step: Callable[[dict[str, float], int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainingResult:
    """Train `network` in place; it ends with the averaged weights of the best validation.

    Args:
        network: Moved to the chosen device, and left there in evaluation mode.
        objective: See `Objective`.
        train_set: To draw batches from.
        validation_set: For validation; if it is empty, the last weights are kept.
        settings: See `TrainingSettings`.
        checkpoint_dir: Where checkpoints are kept. A sound one found there is resumed.
        on_step: Called with metrics and the step, every `log_every` steps and at validations.
        should_stop: Asked after every step; if true, a checkpoint is written and training ends
            with `stopped="interrupted"`.

    Raises:
        KeyboardInterrupt: At any moment; the state after the last step is checkpointed.
        TrainingDiverged: The loss is not finite (with `nonfinite="skip"`: for the 101st time). The
            state before that step is checkpointed.
        UserError: The checkpoint found belongs to another training.
    """
    run = _Run(network, objective, train_set, validation_set, settings, checkpoint_dir)
    budget = Budget.parse(settings.budget)
    with run.isolated_generators(), run.progress_bar(budget) as bar:
        run.resume()
        try:
            stopped = run.to_the_end(budget, bar, on_step, should_stop)
        except KeyboardInterrupt:
            run.save()
            raise
    return run.finish(stopped)


class _Run:
    """The state of one training run: all that a checkpoint holds."""

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        train_set: ImageSet,
        validation_set: ImageSet,
        settings: TrainingSettings,
        checkpoint_dir: Path | None,
    ) -> None:
        self.device = choose_device(settings.device)
        self.network = network.to(self.device)
        self.ema = AveragedModel(
            network, multi_avg_fn=moving_average(settings.ema_decay), use_buffers=True
        ).eval()
        self.objective, self.settings, self.checkpoint_dir = objective, settings, checkpoint_dir
        self.train_set, self.validation_set = train_set, validation_set
        self.order = BatchOrder(
            train_set.labels,
            batch_size=settings.batch_size,
            balanced=settings.balanced,
            unlabelled_share=settings.unlabelled_share,
            seed=settings.seed,
        )
        matrices = [p for p in network.parameters() if p.dim() > 1]
        vectors = [p for p in network.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": settings.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            fused=True,
        )
        automatic = settings.precision == "auto" and has_fast_bf16(self.device, network)
        self.low_precision = automatic or settings.precision == "bf16"
        if settings.gradient_checkpointing:
            switched: Any = network  # torch types what a module has as tensors and modules
            switched.set_grad_checkpointing(True)
        if settings.compile:
            network.compile()
        self.step = 0
        self.validated = self.reported = 0  # the last step that was
        self.skipped = 0
        self.metrics: dict[str, float] = {}  # of the last step
        self.stale = 0
        self.best_step, self.best_value = 0, math.inf
        self.best = self._average()
        self.history: list[dict[str, float]] = []
        self.earlier_seconds, self.started = 0.0, time.monotonic()
        self.beside_weights = self._beside_weights()

    def to_the_end(
        self,
        budget: Budget,
        bar: tqdm,
        on_step: Callable[[dict[str, float], int], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> str:
        """Step, validate, report and checkpoint until there is a reason to stop; return it.

        What an interruption left undone after a step is done first.
        """
        settings = self.settings
        stopped = self._reason_to_stop(budget)
        while not stopped:
            if self.reported == self.step:
                self.take_step(budget)
            if self._awaits_validation(budget):
                self.validate()
            validated = self.validated == self.step
            if on_step and (validated or self.step % settings.log_every == 0):
                on_step(self.metrics, self.step)
            self.reported = self.step
            asked = should_stop is not None and should_stop()
            stopped = "interrupted" if asked else self._reason_to_stop(budget)
            if stopped or self.step % settings.checkpoint_every == 0:
                self.save()
            self.show(bar, budget, self.metrics if validated else {})
        return stopped

    def _awaits_validation(self, budget: Budget) -> bool:
        due = self.spent(budget) >= 1 or self.step % self.settings.validate_every == 0
        return due and self.validated < self.step

    def _reason_to_stop(self, budget: Budget) -> str:
        if self.reported < self.step or self._awaits_validation(budget):
            return ""
        if self.spent(budget) >= 1:
            return "budget"
        patience = self.settings.patience
        return "patience" if patience and self.stale >= patience else ""

    def seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.started

    def spent(self, budget: Budget) -> float:
        return budget.spent(self.step, self.step * self.settings.batch_size, self.seconds())

    def isolated_generators(self) -> AbstractContextManager[None]:
        """Leaves the caller's global generators as they were."""
        gpus = [self.device] if self.device.type == "cuda" else []
        return torch.random.fork_rng(devices=gpus)

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision)

    def take_step(self, budget: Budget) -> None:
        """One optimiser step."""
        settings = self.settings
        rate = settings.learning_rate * _schedule(self.spent(budget), settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        indices = self.order.batch(self.step)
        images = self.on_device(to_model_range(self.train_set.images[indices]))
        labels = self.on_device(torch.as_tensor(self.train_set.labels[indices]))
        generator = torch.Generator(self.device)
        generator.manual_seed(stream_seed(settings.seed, "noise", self.step))
        # Dropout draws from the global generator.
        torch.manual_seed(stream_seed(settings.seed, "dropout", self.step))
        images = augment(images, settings.augmentation, generator)
        self.network.train()
        metrics: dict[str, float] = defaultdict(float)
        parts = zip(*(x.chunk(settings.accumulate) for x in (images, labels)), strict=True)
        for some, their_labels in parts:
            share = len(some) / len(images)
            with self.autocast():
                loss, values = self.objective.loss(self.network, some, their_labels, generator)
            (share * loss).backward()
            for name, value in ({"loss": float(loss.detach())} | values).items():
                metrics[name] += share * value
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), settings.gradient_clip)
        sound = math.isfinite(metrics["loss"] + float(norm))
        if not sound:
            self._refuse(indices.tolist())
        with held_back():  # half a step is no state to go on from
            if sound:
                self.optimizer.step()
                self.ema.update_parameters(self.network)
                self.beside_weights = self._beside_weights()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            self.metrics = (
                dict(metrics) | {"learning_rate": rate}
                if sound
                else {"skipped_steps": float(self.skipped)}
            )

    def on_device(self, tensor: Tensor) -> Tensor:
        """On a GPU, copied while the host goes on."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _refuse(self, indices: list[int]) -> None:
        """Stop at a loss or gradient that is not finite; or count it, to leave the batch out."""
        buffers, statistics = self.beside_weights
        for name, buffer in self.network.named_buffers():
            buffer.copy_(buffers[name])
        self.objective.load_state_dict(statistics)
        if self.settings.nonfinite == "stop" or self.skipped == _MOST_SKIPPED:
            self.save()
            raise TrainingDiverged(self.step, indices)
        self.skipped += 1
        logger.warning(
            "The training loss is not finite at step %d: the batch is left out (%d so far).",
            self.step, self.skipped,
        )  # fmt: skip

    def validate(self) -> None:
        """Validate the averaged weights, and keep them if they are the best so far."""
        if len(self.validation_set.labels) == 0:
            metrics, value = {}, -math.inf
        else:
            with self.autocast():
                metrics = self.objective.validate(self.ema.module, *self.validation_set)
            value = metrics[self.objective.monitor]
        with held_back():
            if len(self.validation_set.labels):
                self.history.append({"step": self.step} | metrics)
            # Without validation images, the latest are the best.
            if value < self.best_value or value == -math.inf:
                self.stale, self.best_step, self.best_value = 0, self.step, value
                self.best = self._average()
            else:
                self.stale += 1
            self.validated = self.step
            self.metrics = self.metrics | metrics

    def _beside_weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Copies of what a loss may change: the network's buffers, the objective's statistics."""
        buffers = {k: v.clone() for k, v in self.network.named_buffers()}
        return buffers, {k: v.clone() for k, v in self.objective.state_dict().items()}

    def _average(self) -> dict[str, Tensor]:
        """A copy of the averaged weights."""
        return {k: v.clone() for k, v in self.ema.module.state_dict().items()}

    def _fingerprint(self) -> str:
        """Of all that must be the same for a checkpoint to be resumed."""
        settings = asdict(self.settings)
        for name in ("device", "log_every", "checkpoint_every", "progress", "compile"):
            del settings[name]
        del settings["gradient_checkpointing"]
        shapes = {k: list(v.shape) for k, v in self.network.state_dict().items()}
        digest = hashlib.sha256(json.dumps([settings, shapes], sort_keys=True).encode())
        for images, labels in (self.train_set, self.validation_set):
            digest.update(str(images.shape).encode() + np.ascontiguousarray(labels).tobytes())
            # The ends stand for the whole, which may be larger than memory.
            digest.update(np.ascontiguousarray(images[:1]).tobytes())
            digest.update(np.ascontiguousarray(images[-1:]).tobytes())
        return digest.hexdigest()

    def save(self) -> None:
        """Write a checkpoint, if a folder for checkpoints is given."""
        if self.checkpoint_dir is None:
            return
        optimizer = self.optimizer.state_dict()["state"]
        # As the step in progress, if any, has found them.
        buffers, statistics = self.beside_weights
        network = self.network.state_dict()
        network |= {name: buffer for name, buffer in buffers.items() if name in network}
        parts = {
            "network": network,
            "average": self.ema.module.state_dict(),
            "best": self.best,
            "objective": statistics,
            "optimizer": {f"{i}/{k}": v for i, slot in optimizer.items() for k, v in slot.items()},
        }
        state = {
            "fingerprint": self._fingerprint(),
            "step": self.step,
            "validated": self.validated,
            "reported": self.reported,
            "skipped": self.skipped,
            "metrics": self.metrics,
            "seconds": self.seconds(),
            "stale": self.stale,
            "best_step": self.best_step,
            "best_value": self.best_value,
            "history": self.history,
        }
        tensors = {f"{part}/{k}": v for part, state in parts.items() for k, v in state.items()}
        with held_back():
            save_checkpoint(self.checkpoint_dir, self.step, tensors, state)

    def resume(self) -> None:
        """Take up the latest sound checkpoint, if there is one.

        Raises:
            UserError: It belongs to another training.
        """
        found = load_checkpoint(self.checkpoint_dir) if self.checkpoint_dir else None
        if found is None:
            return
        tensors, state = found
        if state["fingerprint"] != self._fingerprint():
            raise UserError(
                "The checkpoint folder holds a training with other settings or images: "
                "delete the folder, or train with the settings that it was begun with."
            )
        parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            part, _, key = name.partition("/")
            parts[part][key] = tensor.to(self.device)
        self.network.load_state_dict(parts["network"])
        self.ema.module.load_state_dict(parts["average"])
        self.ema.n_averaged.fill_(state["step"] - state["skipped"])
        self.best = parts["best"]
        self.objective.load_state_dict(parts["objective"])
        slots: dict[int, dict[str, Tensor]] = defaultdict(dict)
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        for name, tensor in parts["optimizer"].items():
            index, _, key = name.partition("/")
            weight = weights[int(index)].detach()
            # The fused optimiser walks through memory: moments must lie as their weights do.
            matches = tensor.shape == weight.shape
            slots[int(index)][key] = torch.empty_like(weight).copy_(tensor) if matches else tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": dict(slots), "param_groups": groups})
        self.step, self.stale = state["step"], state["stale"]
        self.validated, self.reported = state["validated"], state["reported"]
        self.skipped, self.metrics = state["skipped"], state["metrics"]
        self.beside_weights = self._beside_weights()
        self.best_step, self.best_value = state["best_step"], state["best_value"]
        self.history = state["history"]
        self.earlier_seconds, self.started = state["seconds"], time.monotonic()

    def progress_bar(self, budget: Budget) -> tqdm:
        unit = budget.unit.rstrip("s")
        shown = self.settings.progress
        return progress_bar(total=budget.amount, title="training", unit=unit, shown=shown)

    def show(self, bar: tqdm, budget: Budget, metrics: dict[str, float]) -> None:
        if metrics:
            value = metrics.get(self.objective.monitor, math.nan)
            bar.set_postfix({self.objective.monitor: f"{value:.4g}"}, refresh=False)
        bar.update(int(self.spent(budget) * budget.amount) - bar.n)

    def finish(self, stopped: str) -> TrainingResult:
        """Put the best weights into the network."""
        if self.best_step:
            self.network.load_state_dict(self.best)
        self.network.eval()
        return TrainingResult(
            steps=self.step,
            images=self.step * self.settings.batch_size,
            seconds=self.seconds(),
            best_step=self.best_step,
            monitor=self.objective.monitor,
            best_value=self.best_value,
            stopped=stopped,
            history=self.history,
        )


def _schedule(progress: float, warmup: float) -> float:
    """Factor of the learning rate after a share of the budget: linear up, then a cosine to 0."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
