"""What a search chooses from, as files, and the steps from one subnet to the next."""

from effv2_kernels.search.space.choices import StageChoices
from effv2_kernels.search.space.moves import Action
from effv2_kernels.search.space.space import SearchSpace

__all__ = ["Action", "SearchSpace", "StageChoices"]
