"""Three nights on real Prefect, Ray and MLflow: without a champion, without news, and with both.
The images and the workspace lie in a bucket; with folders, it is the same but for their places."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from gan_train import recipes
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.errors import UserError
from gan_train.files.store import Store
from gan_train.runs import run_folder
from pipelines.compute import training
from pipelines.flows import nightly
from pipelines.registry import champions, promotion, tracking, versions
from tests import bucket
from tests.training import tiny_config

pytestmark = [
    pytest.mark.slow,
    # the code of Ray, MLflow and Prefect uses what they have deprecated
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning"),
    pytest.mark.filterwarnings(r"ignore::FutureWarning"),
    pytest.mark.usefixtures("bucket_for_all", "prefect_server", "local_ray"),
]


BUCKET = "s3://nights"


@pytest.fixture(scope="module")
def bucket_for_all(s3_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the workers of Ray must find in their environment, too."""
    bucket.make_bucket(s3_port, "nights")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in bucket.environment(s3_port).items():
            patch.setenv(name, value)
        patch.setenv("GAN_TRAIN_CACHE", str(tmp_path_factory.mktemp("copies")))
        yield


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as connected:
        yield connected


def tonight() -> Config:
    """One checkpoint, at the end, with a score that decides."""
    config = tiny_config(
        Path("source"),
        Path("workspace"),
        evaluate__metrics=["frechet"],
        evaluate__batch=8,
        family__milestones_from=8,
        train__ema_ramp=None,
    )
    places = {"workspace": f"{BUCKET}/team", "data.source": f"{BUCKET}/images"}
    return recipes.change(config, places)


def send(source: Path) -> None:
    """Have the pictures of a folder in the bucket."""
    for path in source.rglob("*.png"):
        Store(f"{BUCKET}/images").send(path, path.relative_to(source).as_posix())


def note(client: SyncPrefectClient) -> str:
    """What the newest night has shown."""
    runs = [run for run in client.read_flow_runs(limit=200) if run.name.startswith("nightly-")]
    newest = max(runs, key=lambda run: str(run.expected_start_time))
    found = client.read_artifacts(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[newest.id])), limit=200
    )
    (shown,) = (str(artifact.data) for artifact in found if artifact.key == "night")
    return shown


def come(source: Path) -> None:
    """New pictures: four reds and a blue, unlike those before."""
    for number, name in enumerate(["red", "red", "red", "red", "blue"]):
        grey = (30 * number, 200 - 20 * number, 90)
        Image.new("RGB", (16, 16), grey).save(source / name / f"new{number}.png")
        Store(f"{BUCKET}/images").send(
            source / name / f"new{number}.png", f"{name}/new{number}.png"
        )


def tags(config: Config, version: int) -> dict[str, str]:
    name = versions.model_name(config)
    return dict(tracking.connect(config).get_model_version(name, str(version)).tags)


def champions_told(client: SyncPrefectClient) -> list[dict[str, Any]]:
    """The events of new champions that have reached the server."""
    wanted = {"filter": {"event": {"name": ["gan-train.champion"]}}, "limit": 50}
    api = str(client.api_url).rstrip("/")
    answer = httpx.post(f"{api}/events/filter", json=wanted, timeout=30).raise_for_status()
    found: list[dict[str, Any]] = answer.json()["events"]
    return found


def test_three_nights(
    client: SyncPrefectClient, tiny_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tonight()
    send(tiny_source)

    # The first night: no champion to begin with
    first_dir, first = nightly.nightly_flow(config)
    index = Index.load(run_folder.shards_of(first_dir))
    assert (first.version, first.alias, first.appointed) == (1, "champion", True)
    trained = run_folder.configuration(first_dir)
    assert trained.seed == nightly.seed_of(config, index.content_hash) != config.seed
    assert trained.data.grow and trained.train.start_from is None
    assert "there is no champion yet" in note(client)

    # The second: nothing is new, and nothing is done
    with monkeypatch.context() as patch:
        patch.setattr(nightly, "train_flow", None)
        state: Any = nightly.nightly_flow(config, return_state=True)
    assert state.is_completed() and state.name == "Nothing new"
    assert "version 1 was trained on these 24 images" in str(state.message)
    assert "version 1 was trained on these 24 images" in note(client)
    assert [path.name for path in run_folder.runs_of(config)] == [first_dir.name]

    # The third: new images; the night is cut off before its version is registered, and goes on
    come(tiny_source)
    with monkeypatch.context() as patch:
        patch.setattr(nightly, "promote_flow", _cut_off)
        with pytest.raises(UserError, match="the power is gone"):
            nightly.nightly_flow(config)
    forget_all()  # the next process runs on another machine, and so do its workers
    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", _not_again(training.fit))
        second_dir, second = nightly.nightly_flow(config)
    assert run_folder.runs_of(config) == [first_dir, second_dir]
    grown = Index.load(run_folder.shards_of(second_dir))
    assert [added.samples for added in grown.additions] == [24, 5]
    assert grown.shards[:2] == index.shards
    trained = run_folder.configuration(second_dir)
    assert trained.seed == nightly.seed_of(config, grown.content_hash)
    assert trained.seed != nightly.seed_of(config, index.content_hash)
    champion = champions.checkpoint_of(config, 1)
    assert champion is not None
    assert trained.train.start_from == run_folder.store_of(config, champion).url

    # Scores are compared under one protocol: the champion's was measured anew
    assert second.version == 2 and "not comparable" not in second.reason
    protocol = json.loads(tags(config, 2)["protocol"])
    assert (protocol["data"], protocol["latents"]) == (grown.content_hash, 1)
    before = promotion.version_standing(1, tags(config, 1), protocol)
    assert before.protocol["data"] == grown.content_hash
    assert before.value != first.score == float(tags(config, 1)["score"])
    better = "is better than" in second.reason
    assert better <= (second.score < before.value)
    assert (second.alias == "champion") == better == second.appointed
    assert before.text in second.reason

    shown = note(client)
    assert "**5 images are new**, in 1 new shards; 29 are stored" in shown
    assert "| red | 8 | 12 |" in shown and "| blue | 8 | 9 |" in shown and "green" not in shown
    assert "with the networks of version 1" in shown and str(trained.seed) in shown
    assert f"| version 1, champion before | {before.text} |" in shown
    assert f"| version 2, of tonight | {second.text} |" in shown
    expected = {1, 2} if better else {1}
    told = champions_told(client)
    deadline = time.monotonic() + 120
    while {e["payload"]["version"] for e in told} != expected and time.monotonic() < deadline:
        time.sleep(0.5)  # events are sent in the background
        told = champions_told(client)
    assert {e["payload"]["version"] for e in told} == expected
    assert {e["resource"]["prefect.resource.id"] for e in told} == {"gan-train.model/progan-tiny"}


def forget_all() -> None:
    """Remove what this machine has of the bucket; its file with the registry stays."""
    copies = Path(os.environ["GAN_TRAIN_CACHE"])
    for folder in (*copies.glob("*/shards"), *copies.glob("*/train")):
        shutil.rmtree(folder)
    for listing in copies.glob("*/listing.json"):
        listing.unlink()


def _cut_off(*_: Any) -> None:
    raise UserError("the power is gone")


def _not_again(fit: Any) -> Any:
    def resumed(config: Config, shards: Path, run_dir: Path, **more: Any) -> Any:
        assert run_folder.finished(run_folder.read_events(run_dir)), "it goes on with its run"
        return fit(config, shards, run_dir, **more)

    return resumed
