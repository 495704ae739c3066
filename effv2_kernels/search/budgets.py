"""The limits of a search: all of them must hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from effv2_kernels.errors import SearchError
from effv2_kernels.search.cost import Costs


@dataclass(frozen=True)
class Budgets:
    """The most that each metric may be, by its name and in its unit; see ``Costs``.

    Raises SearchError where there is no limit, or one that is no number.
    """

    limits: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.limits:
            raise SearchError("a search needs a budget: limit the parameters, the latency, or multiply-adds.")
        for name, limit in self.limits.items():
            if not (math.isfinite(limit) and limit > 0):
                raise SearchError(f"the budget of {name} must be a positive number; got {limit}.")

    def exceeded(self, metrics: Mapping[str, float]) -> list[str]:
        """The names of the metrics that are not within their limits: of NaN nobody knows that it is."""
        return [name for name, limit in self.limits.items() if not metrics[name] <= limit]

    def check(self, costs: Costs) -> None:
        """Raise SearchError where nothing measures a metric, or the smallest subnet is beyond a limit."""
        smallest = costs(costs.space.smallest())
        for name in self.limits:
            if name not in smallest:
                raise SearchError(
                    f"there is a budget of {name}, but what is known of a network is "
                    f"{', '.join(smallest)}: give the table that tells it, or leave out the budget."
                )
        beyond = self.exceeded(smallest)
        if beyond:
            limits = ", ".join(costs.quantity(name, self.limits[name]) for name in beyond)
            raise SearchError(
                f"no subnet of this space can be within {limits}: the smallest has "
                f"{costs.describe(smallest)}. Give a larger budget, or train a supernet of a smaller space."
            )
