"""What a training tells Prometheus, on a Ray that collects metrics: names, tags, and how long."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as families

from gan_train.config import ClusterConfig
from gan_train.data.sharding import shard
from gan_train.errors import UserError
from gan_train.runs import run_folder
from pipelines.compute import metrics, training
from pipelines.compute.cluster import connected, environment
from tests.training import tiny_config

Sample = tuple[str, tuple[tuple[str, str], ...]]
OURS = {*metrics.TAGS, "cause", *(tag for tag, _ in metrics.TAGGED.values())}

pytestmark = [
    pytest.mark.slow,
    # Ray's own code uses what Ray has deprecated
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"),
]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of the metrics agent of a local Ray that collects metrics, and quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(metrics.COLLECTION, "1")
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        with connected(ClusterConfig(workers=2)):
            import ray

            yield int(ray.nodes()[0]["MetricsExportPort"])


def scrape(port: int) -> dict[Sample, float]:
    """What the agent tells of `gan_train` now: values by name and this project's own tags."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found: dict[Sample, float] = {}
    for family in families(text):
        for sample in family.samples:
            if "gan_train" in sample.name:
                tags = tuple(sorted(kv for kv in sample.labels.items() if kv[0] in OURS))
                found[sample.name, tags] = sample.value
    return found


def seen_during(work: Callable[[], object], port: int) -> dict[Sample, float]:
    """The newest value of everything that the agent told while `work` ran, and just after."""
    seen: dict[Sample, float] = {}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.2):
            seen.update(scrape(port))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        work()
        time.sleep(2)  # two reports
    finally:
        over.set()
        looking.join()
    return seen


def test_a_training_exports_every_metric(port: int, tiny_source: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_source, tmp_path, cluster__workers=2, data__shard_images=16)
    shards = shard(config.data, config.workspace)
    run_dir = run_folder.new(config, shards)
    seen = seen_during(lambda: training.fit(config, shards, run_dir), port)

    names = {name for name, _ in seen}
    absent = {
        "ray_gan_train_augment_p",
        "ray_gan_train_failures_total",
    }  # ProGAN, and all went well
    assert names == metrics.exported() - absent
    of_run = (("recipe", "tiny"), ("run", run_dir.name))
    assert seen["ray_gan_train_images", of_run] == 192
    assert seen["ray_gan_train_workers", of_run] == 2
    assert seen["ray_gan_train_resolution", of_run] == 8
    told_by = {dict(tags)["rank"] for name, tags in seen if name == "ray_gan_train_memory_bytes"}
    assert told_by == {"0", "1"}


def test_a_training_that_diverges_is_counted(port: int, tiny_source: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_source, tmp_path, cluster__workers=2, family__lr=1000)
    shards = shard(config.data, config.workspace)
    run_dir = run_folder.new(config, shards)
    with pytest.raises(UserError, match="diverged"):
        training.fit(config, shards, run_dir)
    tags = (("cause", "diverged"), ("recipe", "tiny"), ("run", run_dir.name))
    deadline = time.monotonic() + 60
    while ("ray_gan_train_failures_total", tags) not in scrape(port):
        assert time.monotonic() < deadline, "the counter outlives the process that counted"
        time.sleep(0.2)


def test_values_stay_between_ticks(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's agent forgets a gauge after two of its intervals, here of one second."""
    monkeypatch.setattr(metrics, "REPEAT_S", 0.5)
    exporter = metrics.Exporter(metrics.Origin(tmp_path, "patient", rank=0, workers=1))
    sample = ("ray_gan_train_images", (("recipe", "patient"), ("run", tmp_path.name)))
    with exporter.repeating():
        exporter.tick({"nimg": 7.0, "memory_gib": 1.0})
        time.sleep(4)
        assert scrape(port)[sample] == 7


def test_a_private_instance_exports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(metrics.COLLECTION, raising=False)
    assert metrics.collected()
    monkeypatch.setenv(metrics.COLLECTION, environment(local=True)[metrics.COLLECTION])
    assert not metrics.collected()
