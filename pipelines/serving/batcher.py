"""Draws what concurrent requests ask for together, in few forward passes, in one thread.

A pass takes all that waits at its start, as much as fits. While it runs, the next wishes gather, so
passes grow with the load, and a lone request waits for nobody.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from torch import Tensor

from gan_train.inference import Generator
from gan_train.sampling.painter import Look, Painter
from gan_train.sampling.wishes import Wish, draw

T = TypeVar("T")


class Batcher:
    """The thread that alone uses a generator."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.passes = self.images = 0
        """How many forward passes there were, and how many images they drew."""
        self._at_once = Painter(generator, Look()).at_once
        self._waiting: deque[tuple[Wish, Future[Tensor]]] = deque()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "generator")

    @property
    def waiting(self) -> int:
        """How many wishes no pass has taken yet."""
        return len(self._waiting)

    def draw(self, wishes: Sequence[Wish]) -> list[Future[Tensor]]:
        """The images uint8 [C, R, R] of checked wishes, as soon as they are drawn."""
        futures = []
        for wish in wishes:
            future: Future[Tensor] = Future()
            with self._lock:
                self._waiting.append((wish, future))
            self._thread.submit(self._pass)  # has nothing to do if an earlier pass takes the wish
            futures.append(future)
        return futures

    def run(self, work: Callable[[], T]) -> Future[T]:
        """The result of other work with the generator, which waits for its turn."""
        return self._thread.submit(work)

    def close(self) -> None:
        """End the thread after its present work; who still waits is told that it was cancelled."""
        self._thread.shutdown(cancel_futures=True)
        for _, future in self._waiting:
            future.cancel()

    def _pass(self) -> None:
        with self._lock:
            count = min(len(self._waiting), self._at_once)
            taken = [self._waiting.popleft() for _ in range(count)]
        # of those who have gone away nothing is drawn
        taken = [(wish, future) for wish, future in taken if future.set_running_or_notify_cancel()]
        if not taken:
            return
        try:
            images = draw(self.generator, [wish for wish, _ in taken])
        except BaseException as error:  # those who wait for the images raise it
            for _, future in taken:
                future.set_exception(error)
            return
        self.passes += 1
        self.images += len(taken)
        for (_, future), image in zip(taken, images, strict=True):
            future.set_result(image)
