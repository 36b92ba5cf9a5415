"""The weights of one score network as the start of another, whose classes may differ.

All layers are taken over. Of the class embedding, rows go by the classes' names; a class that the
other network does not know starts as the mean of those it knows, and the null class as the null
class. What is stored with the network about its training images (mean and spread) stays behind.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sgc_experiments.errors import UserError
from sgc_experiments.score_network import ScoreNetwork

_EMBEDDING = "class_embedding.weight"
_OF_THE_IMAGES = ("pixel_mean", "pixel_std")


def transferred_weights(
    network: ScoreNetwork,
    classes: Sequence[str],
    source: ScoreNetwork,
    source_classes: Sequence[str],
) -> dict[str, Tensor]:
    """A state of `network` with the weights of `source`.

    Args:
        network: Whose state is wanted; not changed.
        classes: Names of its classes.
        source: Another network.
        source_classes: Names of its classes.

    Raises:
        UserError: The networks have different layers.
    """
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    theirs = source.state_dict()
    shapes, their_shapes = (
        {k: tuple(v.shape) for k, v in s.items() if k != _EMBEDDING} for s in (state, theirs)
    )
    if shapes != their_shapes:
        wrong = len(set(shapes.items()) ^ set(their_shapes.items()))
        raise UserError(f"The two networks differ in the shape of {wrong} weights.")
    for name in set(state) - {_EMBEDDING, *_OF_THE_IMAGES}:
        state[name] = theirs[name].to(state[name])
    rows = theirs[_EMBEDDING].to(state[_EMBEDDING])
    known = {name: rows[place] for place, name in enumerate(source_classes)}
    mean = rows[:-1].mean(0)
    state[_EMBEDDING] = torch.stack([*(known.get(name, mean) for name in classes), rows[-1]])
    return state
