"""The history of fakes that CycleGAN's discriminators are shown: Shrivastava et al. 2016
(arXiv 1612.07828), section 2.3, as in Zhu et al. 2017, section 4.

There is one pool for each domain, and every worker holds all of it. The workers hand each other
their fakes (a batch of images a step, little beside the gradients) and store them in the order of
their positions in the run. So the pool is a function of the global order: it is the same for any
number of workers or micro-batches, it is whole in the checkpoint of any worker, and another number
of workers can resume from it.
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
        """What D is shown in place of this worker's fakes [n, C, R, R], of the same shape.

        Fake after fake, in the order of their positions over all workers: while the pool has free
        slots, a fake is stored and shown. After that it is shown, or, as often as not, stored in a
        random slot while the one that was there is shown. Collective.
        """
        size = len(self.images)
        fakes = fakes.detach().to(self.images.dtype)
        if size == 0:
            return fakes

        # Every worker's fakes and draws, in the order of the run
        exchanged, slot = rng.uniform() < 0.5, rng.integers(size)
        draws = gather(torch.stack([rng.positions, exchanged.long(), slot], dim=1))  # [N, 3]
        order = draws[:, 0].argsort()
        position, exchanges, slot = draws[order].t().contiguous()  # [N] each
        candidates = torch.cat([self.images, gather(fakes)[order]])  # [size + N, C, R, R]

        # Who is stored where: all turns at once, as if taken one by one
        turn = torch.arange(len(position), device=position.device)
        filling = position < size
        slot = torch.where(filling, position, slot)
        stored = filling | exchanges.bool()
        into = stored & (slot == slot[:, None])  # [i, j]: turn j is stored in the slot of turn i
        before = torch.where(into & (turn < turn[:, None]), turn, -1).amax(dim=1)
        found = torch.where(before >= 0, size + before, slot)  # what is in its slot at that turn
        displayed = torch.where(stored & ~filling, found, size + turn)
        slots = torch.arange(size, device=position.device)
        last = torch.where(stored & (slot == slots[:, None]), turn, -1).amax(dim=1)  # [size]

        self.images.copy_(candidates[torch.where(last >= 0, size + last, slots)])
        return candidates[displayed[torch.searchsorted(position, rng.positions.contiguous())]]
