"""What a family's networks are for, as the scorer sees it: pictures to look at, and measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from gan_train.adversary import Adversary
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.runs.runtime import Runtime


@dataclass(frozen=True)
class Setting:
    """What is scored, on which data, where. `adversary`'s weights may change between calls."""

    config: Config
    index: Index
    shards: Path
    runtime: Runtime
    adversary: Adversary

    @property
    def cache(self) -> Path:
        """Where statistics and downloads are kept."""
        return self.config.workspace / "statistics"


class ImageTask(Protocol):
    """One of generate, upscale and translate. Everything drawn is a function of the seed and a
    place alone: the same for every checkpoint and any number of workers."""

    metric: str
    """The measure that decides which checkpoint is best; lower is better."""

    def grid(self) -> tuple[Tensor, int]:
        """Pictures uint8 [n, C, R, R] and how many stand in a row."""

    def measure(self) -> dict[str, Any]:
        """`{"scores": ..., "protocol": ...}` of the weights as they are. Collective."""
