"""What runs each block, and whether a network is one launch: the fastest that was measured and is right.

What is not ``trusted`` takes no place of what is before it was measured to be faster on this kind of GPU and
has passed its check on this very one (``parity``). Where nothing is trusted, since its backend was asked for
by name, the first alternative that has not failed is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from effv2_kernels import bounds
from effv2_kernels.errors import UnavailableError
from effv2_kernels.gpu import tuning
from effv2_kernels.gpu.alternatives import Alternative
from effv2_kernels.gpu.findings import Findings
from effv2_kernels.gpu.launch import Tile
from effv2_kernels.gpu.one_launch import OneLaunchPlan
from effv2_kernels.gpu.parity import Checks, Verdict
from effv2_kernels.gpu.plan import Chosen, Plan


def known_tiles(alternative: Alternative, findings: Findings) -> list[Tile] | None:
    """Of its launches, without compiling anything; None where some were not measured."""
    found = []
    for launch in alternative.launches:
        tile = findings.tiles.find(launch) or (launch.tiles[0] if launch.interpreted else None)
        if tile is None:
            return None
        found.append(tile)
    return found


def time_of(alternative: Alternative, findings: Findings) -> float | None:
    """Milliseconds; None where it was not measured with the tiles that it has now."""
    tiles = known_tiles(alternative, findings)
    if tiles is None or not alternative.launches:
        return None
    return findings.times(type(alternative.launches[0])).number(alternative.key(tiles))


class Chooser:
    """Chooses for one plan. Raises UnavailableError where every alternative of a block failed its check.

    by_name: whether a block had nothing that is trusted, since its backend was asked for by name. joinable:
    whether every block so far has an alternative that can be a part of one launch.
    """

    def __init__(self, checks: Checks, findings: Findings) -> None:
        self._checks, self._findings = checks, findings
        self.by_name, self.joinable = False, True

    def __call__(self, number: int | None, alternatives: Sequence[Alternative], precision: str) -> Chosen:
        possible = [a for a in alternatives if a.launches]
        if not possible:
            raise UnavailableError("; ".join(a.why_not for a in alternatives))
        self.joinable = self.joinable and any(a.joinable for a in possible)
        if number is None and any(a.trusted for a in possible):  # a scale and a shift: none is much faster
            return Chosen(next(a for a in possible if a.trusted))
        if len(alternatives) == 1 and possible[0].trusted:
            return Chosen(possible[0])
        self.by_name = self.by_name or not any(a.trusted for a in possible)
        times = {a: time_of(a, self._findings) for a in possible}
        refused: dict[Alternative, str] = {a: a.why_not for a in alternatives if not a.launches}
        refused |= {a: str(verdict) for a in possible if (verdict := self._failure(a)) is not None}
        unchecked: list[Alternative] = []
        for alternative in _fastest_first(possible, times):
            if alternative.trusted:
                return Chosen(alternative, _why(alternative, times, refused))
            verdict = self.verdict(number, alternative, precision)
            if verdict.passed:
                return Chosen(alternative, _why(alternative, times, refused, str(verdict)))
            refused[alternative] = str(verdict)
            if not verdict.failed:
                unchecked.append(alternative)
        if not unchecked:
            shown = "; ".join(f"{a.name} {why}" for a, why in refused.items())
            what = "the scale of an output" if number is None else f"block {number}"
            raise UnavailableError(
                f"no kernel for {what} can be used on this GPU ({self._findings.gpu}): {shown}. Use "
                f"backend='triton', {_REPORT}."
            )
        taken = unchecked[0]
        return Chosen(taken, _why(taken, times, refused, refused.pop(taken)))

    def _failure(self, alternative: Alternative) -> Verdict | None:
        """Of an alternative that is known to have failed with the tiles that it is to have."""
        tiles = None if alternative.trusted else known_tiles(alternative, self._findings)
        if tiles is None:
            return None
        key, launches = alternative.key(tiles), type(alternative.launches[0])
        known = self._checks.known(key, launches, bounds.HALF_BLOCK)
        return known if known is not None and known.failed else None

    def verdict(self, number: int | None, alternative: Alternative, precision: str) -> Verdict:
        """Of an alternative with the tiles that it is to have; one that did not pass is said to the log."""
        try:
            chosen = tuning.ready(alternative.launches, self._findings.tiles)
        except torch.OutOfMemoryError:
            return Verdict(None, 0.0, "there was too little free memory for it")
        except UnavailableError as error:
            return Verdict(math.nan, 0.0, str(error))
        tiles = [tile for tile, _ in chosen]
        if number is None:
            verdict = self._checks.of_scale(alternative, tiles, precision)
        else:
            verdict = self._checks.of_block(number, alternative, tiles, precision)
        if verdict.failed:
            names = ", ".join(dict.fromkeys(launch.name for launch in alternative.launches))
            self._findings.warn(
                f"{alternative.name} ({names}) is not used on this GPU ({self._findings.gpu}): it {verdict}. "
                f"Something else runs its block, {_REPORT}."
            )
        elif not verdict.passed:
            self._findings.warn(
                f"some kernels could not be checked on this GPU ({self._findings.gpu}): {verdict.why_not}. "
                f"Triton's run in their place; where only they were asked for, they run unchecked. tune() "
                f"checks all of them."
            )
        return verdict


_REPORT = "and please report this with the output of python -m effv2_kernels env"


def _fastest_first(
    possible: Sequence[Alternative], times: dict[Alternative, float | None]
) -> list[Alternative]:
    """Those that were measured in front, but only where the first one, which is there for all else, was."""
    first = times[possible[0]]
    if first is None:
        return list(possible)
    measured = {a: time for a, time in times.items() if time is not None}
    return [*sorted(measured, key=lambda a: measured[a]), *(a for a in possible if a not in measured)]


def _why(
    chosen: Alternative,
    times: dict[Alternative, float | None],
    refused: dict[Alternative, str],
    verdict: str = "",
) -> str:
    time = times[chosen]
    others = {a: of_other for a, of_other in times.items() if a is not chosen and a not in refused}
    said = [verdict] if verdict else []
    if time is not None and (others or refused):
        said.insert(0, f"{time:.4f} ms")
        said += [f"{a.name} {of_other:.4f} ms" for a, of_other in others.items() if of_other is not None]
    unknown = [a.name for a, of_other in others.items() if time is None or of_other is None]
    if unknown:
        said.append(f"tune() measures whether {' or '.join(unknown)} is faster")
    said += [f"{a.name}{'' if a.launches else ':'} {why}" for a, why in refused.items()]
    return "; ".join(said)


class NetworkChoice:
    """Whether a network is one launch.

    plan: the launches that it is otherwise, with their tiles. make: the one launch; raises UnavailableError,
    with the reason, where it cannot be. by_name: see ``Chooser``.

    one: the one launch, None where it cannot be. is_one: whether it is to be used; why: or why not.
    """

    def __init__(
        self,
        checks: Checks,
        findings: Findings,
        plan: Plan,
        make: Callable[[], OneLaunchPlan],
        precision: str,
        *,
        by_name: bool,
    ) -> None:
        self._checks, self._findings, self._precision = checks, findings, precision
        self.plan, self.why = plan, ""
        self.one: OneLaunchPlan | None = None
        try:
            self.one = make()
        except UnavailableError as error:
            self.why = str(error)
        self.is_one = self.one is not None and self._takes(self.one, by_name)

    def _takes(self, one: OneLaunchPlan, by_name: bool) -> bool:
        known = self._checks.known(one.key, type(one.launches[0]), bounds.HALF_NETWORK)
        if known is not None and known.failed:
            self.why = str(known)
            return False
        times = network_times(self.plan, one, self._findings)
        if times is not None:
            single, joined = times
            self.why = f"{joined:.4f} ms, as single launches {single:.4f} ms"
            if joined >= single:
                return False
        elif by_name and one.image.images == 1:
            # Most launches of one image leave most of a GPU idle: much of the time they only begin and end.
            self.why = "not measured; for one image the first choice"
        else:
            self.why = "not measured: tune() measures whether that is faster"
            return False
        if one.trusted:
            return True
        verdict = self.verdict()
        self.why += f"; {verdict}"
        return verdict.passed

    def verdict(self) -> Verdict:
        """Of the one launch, which there is; one that failed is said to the log."""
        assert self.one is not None
        verdict = self._checks.of_one_launch(self.one, self._precision)
        if verdict.failed:
            self._findings.warn(
                f"the network is not run in one launch on this GPU ({self._findings.gpu}): that {verdict}. "
                f"Single launches run it, {_REPORT}."
            )
        return verdict


def network_times(plan: Plan, one: OneLaunchPlan, findings: Findings) -> tuple[float, float] | None:
    """Milliseconds of single launches and of the one; None where not both were measured."""
    kept = findings.times(type(one.launches[0]))
    single, joined = kept.number(plan.key), kept.number(one.key)
    return None if single is None or joined is None else (single, joined)
