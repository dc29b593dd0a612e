"""The history of fakes that CycleGAN's discriminators are shown: Shrivastava et al. 2016
(arXiv 1612.07828), section 2.3, as in Zhu et al. 2017, section 4.

There is one pool for each domain, and every worker holds a copy. The workers exchange their fakes
(a batch of images a step, little compared with the gradients) and store them in the order of their
positions in the run. So a pool depends on that order alone: it is the same for any number of
workers or micro-batches, every worker's copy is complete, and a run can resume with another number
of workers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gan_train.adversary import ImageShape
from gan_train.nn.collectives import gather
from gan_train.rng import BatchRandom


class ImagePool(nn.Module):
    """Earlier fakes, in a buffer `images` [size, C, R, R]; at first the n-th fake fills slot n.

    A pool of size 0 keeps none.
    """

    images: Tensor

    def __init__(self, size: int, shape: ImageShape) -> None:
        super().__init__()
        blank = torch.zeros(size, shape.channels, shape.resolution, shape.resolution)
        self.register_buffer("images", blank)

    @torch.no_grad()
    def query(self, fakes: Tensor, rng: BatchRandom) -> Tensor:
        """The images [n, C, R, R] that D is shown in place of this worker's fakes [n, C, R, R].

        The fakes of all workers are taken in the order of their positions. While the pool has free
        slots, a fake is stored and shown. After that, half of the fakes are shown and not stored;
        each of the others is stored in a random slot, and the image that was there is shown. Every
        worker must call this together.
        """
        size = len(self.images)
        fakes = fakes.detach().to(self.images.dtype)
        if size == 0:
            return fakes

        # the fakes and random numbers of all workers, in the order of the run
        exchanged, slot = rng.uniform() < 0.5, rng.integers(size)
        draws = gather(torch.stack([rng.positions, exchanged.long(), slot], dim=1))  # [N, 3]
        order = draws[:, 0].argsort()
        position, exchanges, slot = draws[order].t().contiguous()  # [N] each
        candidates = torch.cat([self.images, gather(fakes)[order]])  # [size + N, C, R, R]

        # the slot of each fake: computed for all turns at once, as if they were taken one by one
        turn = torch.arange(len(position), device=position.device)
        filling = position < size
        slot = torch.where(filling, position, slot)
        stored = filling | exchanges.bool()
        into = stored & (slot == slot[:, None])  # [i, j]: turn j is stored in the slot of turn i
        before = torch.where(into & (turn < turn[:, None]), turn, -1).amax(dim=1)
        found = torch.where(before >= 0, size + before, slot)  # the image in its slot at that turn
        displayed = torch.where(stored & ~filling, found, size + turn)
        slots = torch.arange(size, device=position.device)
        last = torch.where(stored & (slot == slots[:, None]), turn, -1).amax(dim=1)  # [size]

        self.images.copy_(candidates[torch.where(last >= 0, size + last, slots)])
        return candidates[displayed[torch.searchsorted(position, rng.positions.contiguous())]]
