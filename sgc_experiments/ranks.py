"""Processes that fit one model together, and what they tell one another.

Every process ("rank") walks through the same program with the same data and the same random
numbers. Two things are shared out between them: the rows of the network's input, whose outputs are
put together again on every rank, so that a loss and its metrics are those of the whole batch on
each of them, to float summation the same as in one process; and the images of a prediction. What
depends on a clock, a file or a user is the first rank's decision. Gradients are averaged by
DistributedDataParallel. In a process that is alone all of this does nothing.

Accelerate, which sets the processes up, is imported when there are several.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sgc_experiments.errors import Outage

Result = TypeVar("Result")
Loss = Callable[..., tuple[Tensor, dict[str, float]]]


class RankLost(Outage):
    """Another of the processes that fit one model has ended."""


def count() -> int:
    """How many processes fit one model together; 1 if this one is alone."""
    distributed = torch.distributed
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def number() -> int:
    """This process's number; 0 is the first, which alone writes, logs and decides."""
    return torch.distributed.get_rank() if count() > 1 else 0


@contextlib.contextmanager
def talking() -> Iterator[None]:
    """Tell in a sentence when, in the block, another process does not answer any more.

    Raises:
        RankLost: That is so.
    """
    try:
        yield
    except RuntimeError as error:
        broken = isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()
        if count() == 1 or not broken:
            raise
        raise RankLost(
            "One of the processes that train the model has ended; see its message above, or the "
            "memory that was left. The same command goes on from the last checkpoint."
        ) from None


def first_says(*values: float) -> list[float]:
    """The first rank's values, on every rank."""
    if count() == 1:
        return list(values)
    from accelerate.state import PartialState
    from accelerate.utils import broadcast

    with talking():
        said = torch.tensor(values, dtype=torch.float64, device=PartialState().device)
        broadcast(said)  # in place
    agreed: list[float] = said.tolist()
    return agreed


def from_first(value: Result) -> Result:
    """The first rank's object, on every rank; those of the others are not looked at."""
    if count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    with talking():
        said: list[Result] = broadcast_object_list([value])
    return said[0]


def shared_out(function: Callable[[np.ndarray], Result], images: np.ndarray) -> list[Result]:
    """Apply a function to the images, each rank to a run of them.

    They talk at the end only: how long a share takes, or how many evaluations it needs, holds up
    nobody in between.

    Args:
        function: Of images (n, S, S), n ≥ 0.
        images: (N, S, S), the same on every rank.

    Returns:
        The results in the images' order, on every rank; of one process, a single one.
    """
    if count() == 1:
        return [function(images)]
    from accelerate.utils import gather_object

    own = function(np.array_split(images, count())[number()])
    with talking():
        gathered: list[Result] = gather_object([own])
    return gathered


class SharedNetwork(nn.Module):
    """A network whose rows are shared out between the ranks.

    Called with the same whole batch on every rank, it gives the whole output on every rank. Only a
    rank's own rows carry a gradient there, so that the ranks' gradients add up to the batch's. That
    holds for weights, not for the input.

    Args:
        network: Whose `forward`, and `all_classes` and `several_classes` if it has them, take
            tensors with a row for every image and give one.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.network, name)

    def forward(self, *inputs: Tensor) -> Tensor:
        """As the network's."""
        return self._put_together(self.network, inputs)

    def all_classes(self, *inputs: Tensor) -> Tensor:
        """As the network's."""
        network: Any = self.network
        return self._put_together(network.all_classes, inputs)

    def several_classes(self, *inputs: Tensor) -> Tensor:
        """As the network's."""
        network: Any = self.network
        return self._put_together(network.several_classes, inputs)

    def _put_together(self, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
        from accelerate.utils import gather

        rows = len(inputs[0])
        size = -(-rows // count())
        begin = min(number() * size, rows)
        end = min(begin + size, rows)
        # Equally many each, for the gathering; who has too few repeats the last.
        mine = (torch.arange(size) + number() * size).clamp(max=rows - 1)
        own = function(*(x[mine.to(x.device)] for x in inputs))
        sent = own.detach()
        if sent.dtype in (torch.bfloat16, torch.float16):  # not every backend gathers these
            sent = sent.float()
        with talking():
            whole = gather(sent.contiguous())[:rows].to(own.dtype)
        return torch.cat([whole[:begin], own[: end - begin], whole[end:]])


def shared_network(network: nn.Module) -> nn.Module:
    """The network itself, or, where there are several ranks, its rows shared out."""
    return network if count() == 1 else SharedNetwork(network)


class _LossOfNetwork(nn.Module):
    """A loss as a module, which is what DistributedDataParallel wraps."""

    def __init__(self, network: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.network, self._loss = network, loss

    def forward(self, *batch: Any) -> tuple[Tensor, dict[str, float]]:
        return self._loss(self.network, *batch)


class Gradients:
    """Adds the gradient of a loss to the weights of a network, on all ranks the same.

    Args:
        network: On its device.
        loss: Of (network, *batch); see `training.Objective`.
    """

    def __init__(self, network: nn.Module, loss: Loss) -> None:
        self._module: nn.Module = _LossOfNetwork(shared_network(network), loss)
        self._buffers = [b for b in network.buffers() if b.numel()]
        if count() > 1:
            from accelerate import Accelerator
            from accelerate.utils import DistributedDataParallelKwargs

            # A loss may leave out weights.
            options = DistributedDataParallelKwargs(find_unused_parameters=True)
            cpu = next(network.parameters()).device.type == "cpu"
            self._accelerator = Accelerator(
                cpu=cpu, mixed_precision="no", kwargs_handlers=[options]
            )
            with talking():
                self._module = self._accelerator.prepare_model(self._module)

    def add(
        self,
        batch: Sequence[Any],
        *,
        share: float,
        autocast: contextlib.AbstractContextManager[None],
        last: bool,
    ) -> dict[str, float]:
        """Add the gradient of one part of the batch.

        Args:
            batch: What the loss is a function of, beside the network; the same on every rank.
            share: Of the batch; a factor of the loss.
            autocast: In which the loss is computed.
            last: Whether no part of this batch follows.

        Returns:
            The loss's metrics, with the loss itself as "loss".
        """
        together = count() > 1
        waits = together and not last
        with self._accelerator.no_sync(self._module) if waits else contextlib.nullcontext():
            with autocast:
                loss, metrics = self._computed(batch)
            with talking():
                # The ranks' gradients are averaged, but each has its own rows' part of the sum.
                (share * count() * loss).backward()
        if together and last:
            self._same_buffers()
        return {"loss": float(loss.detach())} | metrics

    def _computed(self, batch: Sequence[Any]) -> tuple[Tensor, dict[str, float]]:
        found: tuple[Tensor, dict[str, float]] = self._module(*batch)
        return found

    def _same_buffers(self) -> None:
        """Running statistics of a rank's own rows, such as those of batch normalisation."""
        from accelerate.utils import broadcast

        with talking():
            broadcast(self._buffers)
