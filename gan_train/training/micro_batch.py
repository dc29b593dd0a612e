"""A micro-batch: the part of a worker's batch for which losses are computed in one pass."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from gan_train.adversary import Batch, Phase


@dataclass
class MicroBatch:
    """Tensors on the device, the positions int64 [N] of their images in the run, and the tensors
    that phases of this step leave for later ones."""

    batch: Batch
    positions: Tensor
    left: Batch = field(default_factory=dict)

    def seen_by(self, phase: Phase) -> Batch:
        """The batch, with the tensors that the phase takes from earlier phases."""
        return self.batch | {name: self.left[name] for name in phase.takes}

    def keep(self, phase: Phase, leaves: Batch) -> None:
        """Keep the tensors that a phase leaves for later ones. Raises ValueError unless they are
        those that the phase declares."""
        if leaves.keys() != set(phase.leaves):
            raise ValueError(
                f"phase {phase.name} leaves {sorted(leaves)}, and declares {sorted(phase.leaves)}"
            )
        self.left |= leaves
