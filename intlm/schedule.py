"""The pace at which a run goes through its optimizer's schedule.

A schedule is written for a run of some length (`eggroll.sgd.decay_updates`). Where `--minutes` or `--finish-now`
decided on another one, `train.schedule` says how the run goes through it, leg by leg, so that the run's configuration
alone gives its bits: "0-1400: 0-3000, 500-550: 1071-3000" is a run that was planned for 1,400 updates in place of
3,000, and that was finished from update 500 on within 50 updates.
"""

import re
from functools import cache
from typing import NamedTuple

from intlm.settings import INT32_MAX

FORM = "FIRST-LAST: FROM-TO, ..., the updates of the run, from 0, and those of the schedule"


class Leg(NamedTuple):
    """Updates `first` to `last` of the run go through updates `start` to `end` of the schedule."""

    first: int
    last: int
    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}: {self.start}-{self.end}"


@cache
def parse(text: str) -> tuple[Leg, ...]:
    """Returns the legs of `train.schedule`. Raises ValueError where it is not of that form."""
    legs: list[Leg] = []
    for part in text.split(",") if text else ():
        match = re.fullmatch(r"\s*(\d{1,10})-(\d{1,10}):\s*(\d{1,10})-(\d{1,10})\s*", part, re.ASCII)
        leg = Leg(*map(int, match.groups())) if match else Leg(0, 0, 0, 0)
        if not (leg.first < leg.last <= INT32_MAX and leg.start <= leg.end <= INT32_MAX):
            raise ValueError(f"expected {FORM}, both rising")
        if legs and leg.first <= legs[-1].first:
            raise ValueError("expected legs that begin one after the other")
        legs.append(leg)
    return tuple(legs)


def position(text: str, update: int) -> int:
    """The update of the schedule whose setting an update of the run has. text: `train.schedule`."""
    for leg in reversed(parse(text)):
        if update >= leg.last:
            return min(leg.end + update - leg.last, INT32_MAX)
        if update >= leg.first:
            return leg.start + (update - leg.first) * (leg.end - leg.start) // (leg.last - leg.first)
    return update


def with_leg(text: str, leg: Leg) -> str:
    """`train.schedule` with another leg; legs that begin with it or later are dropped."""
    return ", ".join(map(str, [*(old for old in parse(text) if old.first < leg.first), leg]))
