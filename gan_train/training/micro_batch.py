"""A micro-batch: the part of a worker's batch for which losses are computed in one pass."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from gan_train.adversary import Batch, Phase


@dataclass
class MicroBatch:
    """Tensors on the device, the positions int64 [N] of their samples in the run, and what the
    phases of this step have left."""

    batch: Batch
    positions: Tensor
    left: Batch = field(default_factory=dict)

    def seen_by(self, phase: Phase) -> Batch:
        """The batch, and beside it what the phase takes of what earlier ones left."""
        return self.batch | {name: self.left[name] for name in phase.takes}

    def keep(self, phase: Phase, leaves: Batch) -> None:
        """Keep what a phase leaves. Raises ValueError unless it is what the phase declares."""
        if leaves.keys() != set(phase.leaves):
            raise ValueError(
                f"phase {phase.name} leaves {sorted(leaves)}, and declares {sorted(phase.leaves)}"
            )
        self.left |= leaves
