"""The training loop, one for generative and discriminative models.

What is trained is told by an `Objective`; the loop knows batches, the optimiser, the moving average
of the weights, validation and checkpoints. The order of the images and all noise are functions of
(seed, step): a run repeats itself to the last digit on the same CPU, and a checkpoint needs no
generator state for a resumed run to equal an unbroken one. Several processes may train together
(see `ranks`): each draws the whole batch and all of its noise, and computes its share of the rows.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from sgc_experiments import ranks
from sgc_experiments.augmentation import augment
from sgc_experiments.batches import BatchOrder, ImageSet, stream_seed, to_model_range
from sgc_experiments.errors import UserError
from sgc_experiments.interruption import held_back
from sgc_experiments.progress import progress_bar
from sgc_experiments.training_settings import (
    Budget,
    Moment,
    TrainingSettings,
    choose_device,
    has_fast_bf16,
)
from sgc_experiments.training_state import TrainingState, fingerprint

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
        self,
        network: Any,
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        moment: Moment,
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
    model: Mapping[str, Any] | None = None,
    checkpoint_dir: Path | None = None,
    on_step: Callable[[dict[str, float], int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainingResult:
    """Train `network` in place; it ends with the averaged weights of the best validation.

    Where several processes train together, each calls this with the same network, data and
    settings; folder, `on_step` and `should_stop` are given to the first rank alone.

    Args:
        network: Moved to the chosen device, and left there in evaluation mode.
        objective: See `Objective`.
        train_set: To draw batches from.
        validation_set: For validation; if it is empty, the last weights are kept.
        settings: See `TrainingSettings`.
        model: What network and objective were made with, JSON-able: another one's checkpoint is
            not resumed.
        checkpoint_dir: Where checkpoints are kept. A sound one found there is resumed.
        on_step: Called with metrics and the step, every `log_every` steps and at validations.
        should_stop: Asked after every step; if true, a checkpoint is written and training ends
            with `stopped="interrupted"`.

    Raises:
        KeyboardInterrupt: At any moment; the state after the last step is checkpointed.
        RankLost: Another process has ended; the state after the last step is checkpointed.
        TrainingDiverged: The loss is not finite (with `nonfinite="skip"`: for the 101st time). The
            state before that step is checkpointed.
        UserError: The checkpoint found belongs to another training.
    """
    sets = (train_set, validation_set)
    run = _Run(network, objective, sets, settings, model or {}, checkpoint_dir)
    budget = Budget.parse(settings.budget)
    with run.isolated_generators(), run.progress_bar(budget) as bar:
        run.resume()
        try:
            stopped = run.to_the_end(budget, bar, on_step, should_stop)
        except (KeyboardInterrupt, ranks.RankLost):
            run.save()
            raise
    return run.finish(stopped)


class _Run:
    """One training run: its state, and all that the state's next step depends on."""

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        sets: tuple[ImageSet, ImageSet],
        settings: TrainingSettings,
        model: Mapping[str, Any],
        checkpoint_dir: Path | None,
    ) -> None:
        self.device = choose_device(settings.device)
        self.network = network.to(self.device)
        self.objective, self.settings, self.checkpoint_dir = objective, settings, checkpoint_dir
        self.train_set, self.validation_set = sets
        self.state = TrainingState(
            self.network, objective, settings, fingerprint(settings, model, network, sets)
        )
        self.order = BatchOrder(
            self.train_set.labels,
            batch_size=settings.batch_size,
            balanced=settings.balanced,
            unlabelled_share=settings.unlabelled_share,
            seed=settings.seed,
        )
        automatic = settings.precision == "auto" and has_fast_bf16(self.device, network)
        self.low_precision = automatic or settings.precision == "bf16"
        if settings.gradient_checkpointing:
            switched: Any = network  # torch types what a module has as tensors and modules
            switched.set_grad_checkpointing(True)
        if settings.compile:
            network.compile()
        self.gradients = ranks.Gradients(self.network, objective.loss)
        self.seconds = 0.0

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
        settings, state = self.settings, self.state
        self.look_at_the_clock()
        stopped = self._reason_to_stop(budget)
        while not stopped:
            if state.reported == state.step:
                self.take_step(budget)
                self.look_at_the_clock()
            if self._awaits_validation(budget):
                self.validate()
            validated = state.validated == state.step
            if on_step and (validated or state.step % settings.log_every == 0):
                on_step(state.metrics, state.step)
            state.reported = state.step
            asked = self.look_at_the_clock(should_stop)
            stopped = "interrupted" if asked else self._reason_to_stop(budget)
            if stopped or state.step % settings.checkpoint_every == 0:
                self.save()
            self.show(bar, budget, state.metrics if validated else {})
        return stopped

    def look_at_the_clock(self, should_stop: Callable[[], bool] | None = None) -> bool:
        """Let all ranks go by the first one's clock; whether the first is asked to stop."""
        asked = should_stop is not None and should_stop()
        self.seconds, asked_first = ranks.first_says(self.state.seconds(), float(asked))
        return bool(asked_first)

    def _awaits_validation(self, budget: Budget) -> bool:
        due = self.spent(budget) >= 1 or self.state.step % self.settings.validate_every == 0
        return due and self.state.validated < self.state.step

    def _reason_to_stop(self, budget: Budget) -> str:
        if self.state.reported < self.state.step or self._awaits_validation(budget):
            return ""
        if self.spent(budget) >= 1:
            return "budget"
        patience = self.settings.patience
        return "patience" if patience and self.state.stale >= patience else ""

    def spent(self, budget: Budget) -> float:
        step = self.state.step
        return budget.spent(step, step * self.settings.batch_size, self.seconds)

    def isolated_generators(self) -> AbstractContextManager[None]:
        """Leaves the caller's global generators as they were."""
        gpus = [self.device] if self.device.type == "cuda" else []
        return torch.random.fork_rng(devices=gpus)

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision)

    def take_step(self, budget: Budget) -> None:
        """One optimiser step."""
        settings, state = self.settings, self.state
        moment = Moment(state.step, self.spent(budget))
        rate = settings.learning_rate_after(moment.spent)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        indices = self.order.batch(state.step)
        metrics = self._add_gradients(indices, moment)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), settings.gradient_clip)
        (sound,) = ranks.first_says(math.isfinite(metrics["loss"] + float(norm)))
        if not sound:
            self._refuse(indices.tolist())
        with held_back():  # half a step is no state to go on from
            if sound:
                state.update()
            state.optimizer.zero_grad(set_to_none=True)
            state.step += 1
            state.metrics = (
                metrics | {"learning_rate": rate}
                if sound
                else {"skipped_steps": float(state.skipped)}
            )

    def _add_gradients(self, indices: np.ndarray, moment: Moment) -> dict[str, float]:
        """The gradients of a batch, and its metrics."""
        settings = self.settings
        images = self.on_device(to_model_range(self.train_set.images[indices]))
        labels = self.on_device(torch.as_tensor(self.train_set.labels[indices]))
        generator = torch.Generator(self.device)
        generator.manual_seed(stream_seed(settings.seed, "noise", self.state.step))
        # Dropout draws from the global generator, each rank for its own rows.
        purpose = f"dropout {ranks.number()}" if ranks.number() else "dropout"
        torch.manual_seed(stream_seed(settings.seed, purpose, self.state.step))
        images = augment(images, settings.augmentation, generator)
        self.network.train()
        metrics: dict[str, float] = defaultdict(float)
        parts = [
            (some, theirs, generator, moment)
            for some, theirs in zip(
                *(x.chunk(settings.accumulate) for x in (images, labels)), strict=True
            )
        ]
        for part in parts:
            share = len(part[0]) / len(images)
            values = self.gradients.add(
                part, share=share, autocast=self.autocast(), last=part is parts[-1]
            )
            for name, value in values.items():
                metrics[name] += share * value
        return dict(metrics)

    def on_device(self, tensor: Tensor) -> Tensor:
        """On a GPU, copied while the host goes on."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _refuse(self, indices: list[int]) -> None:
        """Stop at a loss or gradient that is not finite; or count it, to leave the batch out."""
        state = self.state
        state.undo_loss()
        if self.settings.nonfinite == "stop" or state.skipped == _MOST_SKIPPED:
            self.save()
            raise TrainingDiverged(state.step, indices)
        state.skipped += 1
        logger.warning(
            "The training loss is not finite at step %d: the batch is left out (%d so far).",
            state.step, state.skipped,
        )  # fmt: skip

    def validate(self) -> None:
        """Validate the averaged weights, and keep them if they are the best so far."""
        state = self.state
        if len(self.validation_set.labels) == 0:
            metrics, value = {}, -math.inf
        else:
            network = ranks.shared_network(state.ema.module)
            with self.autocast():
                metrics = self.objective.validate(network, *self.validation_set)
            value = metrics[self.objective.monitor]
        with held_back():
            if len(self.validation_set.labels):
                state.history.append({"step": state.step} | metrics)
            state.judge(value)
            state.metrics = state.metrics | metrics

    def save(self) -> None:
        self.state.save(self.checkpoint_dir)

    def resume(self) -> None:
        self.state.resume(self.checkpoint_dir)

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
        state = self.state
        if state.best_step:
            self.network.load_state_dict(state.best)
        self.network.eval()
        return TrainingResult(
            steps=state.step,
            images=state.step * self.settings.batch_size,
            seconds=state.seconds(),
            best_step=state.best_step,
            monitor=self.objective.monitor,
            best_value=state.best_value,
            stopped=stopped,
            history=state.history,
        )
