"""Engines that the tests of a file share: starting one takes longer than most of what is tested."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prefect.testing.utilities import prefect_test_harness

from gan_train.config import ClusterConfig
from pipelines.compute.cluster import connected


@pytest.fixture(scope="module")
def prefect_server() -> Iterator[None]:
    """A real server with a database of its own."""
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One local Ray with room for two workers, which flows and functions enter again."""
    with connected(ClusterConfig(workers=2)):
        yield
