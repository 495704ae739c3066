"""A small supernet for tests, of odd sizes, whose every part has a random value of its own."""

import torch
from models import randomise

from effv2_kernels.search.space import SearchSpace, StageChoices
from effv2_kernels.search.supernet import Supernet

# Attention that is dropped and kept, a stage that may be empty, ratios that leave a fraction of a channel.
SPACE = SearchSpace(
    (
        StageChoices((8, 16), (0, 1), (1, 2.55)),
        StageChoices((8, 24), (1, 2), (0.5, 2)),
        StageChoices((8, 16, 24), (1, 2, 4), (1, 1.3, 3), (0, 1, 2)),
        StageChoices((16, 32), (2, 3), (1, 2), (0, 1, 3)),
    ),
    img_size=(39, 53),
    in_channels=2,
)


def random_supernet(generator, *, space=SPACE, dtype=torch.float64, **options):
    """In eval mode."""
    supernet = Supernet(space, **({"num_classes": 5} | options))
    return randomise(supernet.to(dtype), generator)


def some_subnets(generator, count, space=SPACE):
    """The largest, the smallest, and random ones."""
    return [space.largest(), space.smallest(), *(space.sample(generator) for _ in range(count))]


def images_for(space, generator, batch=2, dtype=torch.float64):
    return torch.randn(batch, space.in_channels, *space.img_size, generator=generator, dtype=dtype)
