"""The exponential moving average of a model's weights, for `torch.optim.swa_utils`."""

from collections.abc import Callable

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...] | list[Tensor]


def moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """An update of averaged weights, all of one type at once.

    Early averages forget faster, by (1 + updates)^(−2/3), so that the start is not remembered.

    Args:
        decay: What the average keeps of itself at an update, in [0, 1).
    """

    @torch.no_grad()
    def update(average: Tensors, latest: Tensors, updates: Tensor | int) -> None:
        forget = max(1 - decay, (1 + int(updates)) ** (-2 / 3))
        if average[0].is_floating_point():
            torch._foreach_lerp_(average, latest, forget)
        else:  # a counter, such as that of batch normalisation
            torch._foreach_copy_(average, latest)

    return update
