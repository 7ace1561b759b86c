"""Time spent, on the wall and on the processor."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Spent:
    """Seconds."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.wall - other.wall, self.cpu - other.cpu)


class Clock:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self.start = Spent(time.perf_counter(), time.process_time())

    def passed(self) -> Spent:
        return Spent(time.perf_counter(), time.process_time()) - self.start
