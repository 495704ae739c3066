"""The mobile efficiency score: how small and fast a network is, in one number."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from effv2_kernels.errors import SearchError

# The paper defines the score; its text could not be checked for the numbers. These are remembered, without a
# source. With them MobileNetV2 (3.5 M parameters, 0.9 ms on an iPhone 12) and S0 have 102.9 both.
PARAMETERS, LATENCY = "parameters", "latency"
REFERENCES = {PARAMETERS: 3.0, LATENCY: 1.0}
EXPONENTS = {PARAMETERS: 0.5, LATENCY: 1.0}


@dataclass(frozen=True)
class MES:
    """MES = 100 * prod_i (M_i / U_i) ** -alpha_i over named metrics M; larger is better.

    Li et al., arXiv 2212.08059, section 3.3. exponents: alpha, how much a metric counts, by its name:
    parameters are in millions, latency in the unit of its table, and any other metric (memory, energy) may
    stand beside them. references: U, in the units of the metrics; 1 where none is given. They scale all
    scores alike, so that no choice depends on them.

    Raises SearchError for an exponent or a reference that makes no sense.
    """

    exponents: Mapping[str, float] = field(default_factory=lambda: dict(EXPONENTS))
    references: Mapping[str, float] = field(default_factory=lambda: dict(REFERENCES))

    def __post_init__(self) -> None:
        for name, exponent in self.exponents.items():
            if not (math.isfinite(exponent) and exponent >= 0):
                raise SearchError(
                    f"the exponent of {name} must be at least 0, for less is better; got {exponent}."
                )
        for name, reference in self.references.items():
            if not (math.isfinite(reference) and reference > 0):
                raise SearchError(f"the reference of {name} must be positive; got {reference}.")
        if not any(self.exponents.values()):
            raise SearchError(
                "a score needs a metric that counts: give at least one exponent that is not 0, such as "
                "parameters=0.5."
            )

    def __call__(self, metrics: Mapping[str, float]) -> float:
        """The score of a network. Raises SearchError where a metric is missing, or is not positive."""
        product = 1.0
        for name, exponent in self.exponents.items():
            if name not in metrics:
                raise SearchError(
                    f"the score counts {name}, but what is known of a network is {', '.join(metrics)}: give "
                    f"what measures it, such as a latency table, or leave out its exponent."
                )
            if not metrics[name] > 0:  # nor NaN, which would be no score at all
                raise SearchError(f"a score needs positive metrics, but {name} is {metrics[name]}.")
            product *= (metrics[name] / self.references.get(name, 1.0)) ** -exponent
        return 100 * product

    def of(self, names: Collection[str]) -> MES | None:
        """The score of some of its metrics alone; None where none of them counts."""
        kept = {name: exponent for name, exponent in self.exponents.items() if name in names}
        return MES(kept, self.references) if any(kept.values()) else None


def over_devices(mes: MES, latencies: Collection[str]) -> MES:
    """The same score where the latency is that of several devices, named by ``latencies``.

    Each has its share of the exponent and the reference of "latency", so that the score is that of the
    geometric mean of the times: how much speed counts beside size does not depend on how many devices there
    are. A metric that has an exponent of its own already keeps it.
    """
    exponents = {name: value for name, value in mes.exponents.items() if name != LATENCY}
    references = dict(mes.references)
    if LATENCY in mes.exponents:
        for name in latencies:
            exponents.setdefault(name, mes.exponents[LATENCY] / len(latencies))
            references.setdefault(name, mes.references.get(LATENCY, 1.0))
    return MES(exponents, references)
