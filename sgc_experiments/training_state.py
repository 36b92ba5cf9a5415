"""The state of a training run: all that a checkpoint holds, and nothing that it does not.

A checkpoint knows nothing of how many processes wrote it: any number of them go on with it.
"""

import hashlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sgc_experiments import ranks
from sgc_experiments.batches import ImageSet
from sgc_experiments.checkpoint import load_checkpoint, save_checkpoint
from sgc_experiments.errors import UserError
from sgc_experiments.interruption import held_back
from sgc_experiments.moving_average import moving_average
from sgc_experiments.training_settings import TrainingSettings

# What changes no number of a training, so that it may differ when one is resumed.
_BESIDE_THE_NUMBERS = (
    *("device", "log_every", "checkpoint_every", "progress", "compile"),
    "gradient_checkpointing",
)


class Statistics(Protocol):
    """An objective, as a checkpoint sees it."""

    def state_dict(self) -> dict[str, Tensor]:
        """Running statistics; empty if there are none."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> Any:
        """Put back what `state_dict` gave."""
        ...


def fingerprint(
    settings: TrainingSettings,
    model: Mapping[str, Any],
    network: nn.Module,
    sets: Sequence[ImageSet],
) -> str:
    """Of all that must be the same for a checkpoint to be resumed; see `training.train`."""
    relevant = asdict(settings)
    for name in _BESIDE_THE_NUMBERS:
        del relevant[name]
    shapes = {k: list(v.shape) for k, v in network.state_dict().items()}
    digest = hashlib.sha256(json.dumps([relevant, model, shapes], sort_keys=True).encode())
    for images, labels in sets:
        digest.update(str(images.shape).encode() + np.ascontiguousarray(labels).tobytes())
        # The ends stand for the whole, which may be larger than memory.
        digest.update(np.ascontiguousarray(images[:1]).tobytes())
        digest.update(np.ascontiguousarray(images[-1:]).tobytes())
    return digest.hexdigest()


class TrainingState:
    """Weights, their average, the optimiser, and where training is.

    Args:
        network: On its device.
        objective: Whose running statistics belong to the state.
        settings: Of the optimiser and the average.
        fingerprint: See `fingerprint`.

    Attributes:
        step: Optimiser steps taken.
        validated: The last step that was validated.
        reported: The last step that was reported.
        skipped: Batches that were left out.
        metrics: Of the last step.
        stale: Validations since the best one.
        best: The averaged weights of the best validation.
        best_step: Its step.
        best_value: The monitored metric there.
        history: One dict per validation, with its "step".
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Statistics,
        settings: TrainingSettings,
        fingerprint: str,
    ) -> None:
        self.network, self.objective, self.fingerprint = network, objective, fingerprint
        self.ema = AveragedModel(
            network, multi_avg_fn=moving_average(settings.ema_decay), use_buffers=True
        ).eval()
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
        self.step = self.validated = self.reported = self.skipped = 0
        self.metrics: dict[str, float] = {}
        self.stale = 0
        self.best_step, self.best_value = 0, math.inf
        self.best = self._average()
        self.history: list[dict[str, float]] = []
        self._earlier_seconds, self._started = 0.0, time.monotonic()
        self._beside_weights = self._copy_beside_weights()

    def seconds(self) -> float:
        """Wall time so far, over all resumptions."""
        return self._earlier_seconds + time.monotonic() - self._started

    def update(self) -> None:
        """Change the weights by their gradients, and the average by the weights."""
        self.optimizer.step()
        self.ema.update_parameters(self.network)
        self._beside_weights = self._copy_beside_weights()

    def undo_loss(self) -> None:
        """Put back what computing a loss has changed beside the gradients."""
        buffers, statistics = self._beside_weights
        for name, buffer in self.network.named_buffers():
            buffer.copy_(buffers[name])
        self.objective.load_state_dict(statistics)

    def judge(self, value: float) -> None:
        """Keep the averaged weights if a validation, of this value, is the best so far."""
        # Without validation images, the latest are the best.
        if value < self.best_value or value == -math.inf:
            self.stale, self.best_step, self.best_value = 0, self.step, value
            self.best = self._average()
        else:
            self.stale += 1
        self.validated = self.step

    def _copy_beside_weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Copies of what a loss may change: the network's buffers, the objective's statistics."""
        buffers = {k: v.clone() for k, v in self.network.named_buffers()}
        return buffers, {k: v.clone() for k, v in self.objective.state_dict().items()}

    def _average(self) -> dict[str, Tensor]:
        return {k: v.clone() for k, v in self.ema.module.state_dict().items()}

    def save(self, folder: Path | None) -> None:
        """Write a checkpoint, if a folder for checkpoints is given."""
        if folder is None:
            return
        optimizer = self.optimizer.state_dict()["state"]
        # As the step in progress, if any, has found them.
        buffers, statistics = self._beside_weights
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
            "fingerprint": self.fingerprint,
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
            save_checkpoint(folder, self.step, tensors, state)

    def resume(self, folder: Path | None) -> None:
        """Take up the first rank's latest sound checkpoint, if there is one.

        Raises:
            UserError: It belongs to another training.
        """
        found = ranks.from_first(load_checkpoint(folder) if folder else None)
        if found is None:
            return
        tensors, state = found
        if state["fingerprint"] != self.fingerprint:
            raise UserError(
                "The checkpoint folder holds a training of another model, or with other settings "
                "or images: delete the folder, or train with the settings that it was begun with."
            )
        device = next(self.network.parameters()).device
        parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            part, _, key = name.partition("/")
            parts[part][key] = tensor.to(device)
        self.network.load_state_dict(parts["network"])
        self.ema.module.load_state_dict(parts["average"])
        self.ema.n_averaged.fill_(state["step"] - state["skipped"])
        self.best = parts["best"]
        self.objective.load_state_dict(parts["objective"])
        self._resume_optimizer(parts["optimizer"])
        self._beside_weights = self._copy_beside_weights()
        for name in ("step", "validated", "reported", "skipped", "metrics", "stale", "history"):
            setattr(self, name, state[name])
        self.best_step, self.best_value = state["best_step"], state["best_value"]
        self._earlier_seconds, self._started = state["seconds"], time.monotonic()

    def _resume_optimizer(self, tensors: dict[str, Tensor]) -> None:
        slots: dict[int, dict[str, Tensor]] = defaultdict(dict)
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        for name, tensor in tensors.items():
            index, _, key = name.partition("/")
            weight = weights[int(index)].detach()
            # The fused optimiser walks through memory: moments must lie as their weights do.
            matches = tensor.shape == weight.shape
            slots[int(index)][key] = torch.empty_like(weight).copy_(tensor) if matches else tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": dict(slots), "param_groups": groups})
