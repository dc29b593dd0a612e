"""A run in a bucket: what travels, in which order, and what another machine makes of it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gan_train import recipes
from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.files import store as store_module
from gan_train.files.atomic import write_json
from gan_train.files.digests import sha256_of
from gan_train.files.store import Store, attach
from gan_train.runs import run_folder, shared
from gan_train.runs.events import EventLog, read_events
from gan_train.runs.shared import Inbox, Outbox, Superseded, bring, bring_to_train, workspace_lock
from tests.bucket import Faults
from tests.training import tiny_config


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "POLL_S", 0.02)


@pytest.fixture
def store(in_bucket: str) -> Store:
    return Store(in_bucket) / "train/run"


@pytest.fixture
def worker(store: Store, tmp_path: Path) -> Path:
    """The folder in which a worker trains."""
    attach(tmp_path / "worker", store)
    return tmp_path / "worker"


def machine(store: Store, folder: Path) -> Path:
    attach(folder, store)
    return folder


def checkpoint(run_dir: Path, nimg: int, content: str = "weights") -> Path:
    """A folder with what marks a whole checkpoint."""
    folder = run_dir / "checkpoints" / f"{nimg:012d}"
    folder.mkdir(parents=True)
    for name in ("networks", "generator"):
        save_file({content: torch.full((nimg,), 1.0)}, folder / f"{name}.safetensors")
    (folder / "generator.json").write_text("{}")
    write_json(folder / "MANIFEST.json", {p.name: sha256_of(p) for p in folder.iterdir()})
    return folder


def tree(run_dir: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run_dir)): path.read_bytes()
        for path in run_dir.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_one_machine_sends_another_brings(store: Store, worker: Path, tmp_path: Path) -> None:
    outbox = Outbox(worker)
    events = EventLog(worker)
    events.append("start", 0)
    checkpoint(worker, 100)
    outbox.send()
    (worker / "samples").mkdir()
    (worker / "samples" / "a.png").write_bytes(b"grid")
    events.append("image", 100, path="samples/a.png")
    write_json(checkpoint(worker, 200) / "scores.json", {"scores": {}})
    outbox.send()

    other = machine(store, tmp_path / "other")
    bring(other)
    assert tree(other) == tree(worker)
    assert [event["kind"] for event in read_events(other)] == ["start", "image"]


def test_events_come_behind_what_they_name_and_manifests_behind_their_files(
    store: Store, worker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []
    send, create = Store.send, Store.create
    monkeypatch.setattr(
        Store, "send", lambda self, path, key: (keys.append(key), send(self, path, key))[1]
    )
    monkeypatch.setattr(
        Store, "create", lambda self, key, data: (keys.append(key), create(self, key, data))[1]
    )
    outbox = Outbox(worker)
    checkpoint(worker, 100)
    EventLog(worker).append("start", 0)
    outbox.send()
    folder = "checkpoints/000000000100"
    assert keys == [
        f"{folder}/generator.json",
        f"{folder}/generator.safetensors",
        f"{folder}/networks.safetensors",
        f"{folder}/MANIFEST.json",
        "events/000000000000000.jsonl",
    ]
    outbox.send()
    assert len(keys) == 5, "nothing is sent twice"


def test_a_checkpoint_that_was_not_sent_to_its_end_is_no_checkpoint(
    store: Store, worker: Path, tmp_path: Path
) -> None:
    outbox = Outbox(worker)
    checkpoint(worker, 100)
    checkpoint(worker, 200)
    outbox.send()
    store.delete("checkpoints/000000000200/MANIFEST.json")
    other = machine(store, tmp_path / "other")
    assert bring_to_train(other) == "000000000100"
    assert [path.name for path in (other / "checkpoints").iterdir()] == ["000000000100"]


def test_a_damaged_checkpoint_is_passed_over(store: Store, worker: Path, tmp_path: Path) -> None:
    outbox = Outbox(worker)
    for nimg in (100, 200, 300):
        checkpoint(worker, nimg)
    outbox.send()
    store.write("checkpoints/000000000300/networks.safetensors", b"x" * len("weights") * 300)
    assert bring_to_train(machine(store, tmp_path / "other")) == "000000000200"


def test_all_workers_take_the_checkpoint_of_the_first(
    store: Store, worker: Path, tmp_path: Path
) -> None:
    """Also where a checkpoint has arrived after rank 0 has looked."""
    outbox = Outbox(worker)
    checkpoint(worker, 100)
    outbox.send()
    chosen = bring_to_train(machine(store, tmp_path / "first"))
    checkpoint(worker, 200)
    outbox.send()
    others = machine(store, tmp_path / "others")
    checkpoint(others, 300)  # of an earlier attempt
    shared.bring_one(others, chosen)
    (only,) = (others / "checkpoints").iterdir()
    assert tree(only) == tree(worker / "checkpoints" / chosen)
    shared.bring_one(others, "")
    assert not list((others / "checkpoints").iterdir())


def test_what_was_not_sent_is_removed_before_training_goes_on(
    store: Store, worker: Path, tmp_path: Path
) -> None:
    outbox = Outbox(worker)
    events = EventLog(worker)
    events.append("metrics", 100, values={})
    checkpoint(worker, 100)
    outbox.send()
    events.append("metrics", 200, values={})
    checkpoint(worker, 200)
    (worker / shared.STOP).touch()
    bring_to_train(worker)
    other = machine(store, tmp_path / "other")
    bring_to_train(other)
    assert tree(worker) == tree(other)
    assert [event["nimg"] for event in read_events(worker)] == [100]


def test_thinned_checkpoints_are_thinned_in_the_store(store: Store, worker: Path) -> None:
    outbox = Outbox(worker)
    folder = checkpoint(worker, 100)
    outbox.send()
    (folder / "PRUNED").touch()
    for name in ("MANIFEST.json", "networks.safetensors"):
        (folder / name).unlink()
    outbox.send()
    kept = {entry.key.rpartition("/")[2] for entry in store.entries("checkpoints")}
    assert kept == {"PRUNED", "generator.json", "generator.safetensors"}


def test_another_process_that_writes_the_log_is_noticed(store: Store, worker: Path) -> None:
    first, second = Outbox(worker), Outbox(machine(store, worker.parent / "second"))
    EventLog(worker).append("start", 0, precision="bf16")
    first.send()
    EventLog(worker.parent / "second").append("start", 0, precision="float32")
    with pytest.raises(Superseded, match="by another process"):
        second.send()
    third = machine(store, worker.parent / "third")
    with pytest.raises(Superseded), Outbox(third) as outbox:
        EventLog(third).append("start", 0)
        with pytest.raises(Superseded):  # what the trainer hears when it asks whether to stop
            until(lambda: outbox.check() is not None)


def test_followers_see_events_with_what_they_name_and_can_stop(
    store: Store, worker: Path, tmp_path: Path
) -> None:
    driver = machine(store, tmp_path / "driver")
    with Inbox(driver), Outbox(worker):
        (worker / "workers.log").write_text("a warning")
        (worker / "samples").mkdir()
        (worker / "samples" / "a.png").write_bytes(b"grid")
        scored = checkpoint(worker, 100)
        events = EventLog(worker)
        events.append("image", 100, path="samples/a.png")
        events.append("checkpoint", 100, path=str(scored.relative_to(worker)), scores={})
        until(lambda: len(read_events(driver)) == 2)
        assert (driver / "samples" / "a.png").read_bytes() == b"grid"
        assert (driver / "checkpoints" / scored.name / "MANIFEST.json").exists()
        until(lambda: (driver / "workers.log").exists())
        (driver / "mlflow.json").write_text("cursor")
        (driver / shared.STOP).touch()
        until((worker / shared.STOP).exists)
        events.append("end", 100, status="stopped")
        checkpoint(worker, 200)
    assert [event["kind"] for event in read_events(driver)] == ["image", "checkpoint", "end"]
    elsewhere = machine(store, tmp_path / "elsewhere")
    bring(elsewhere)
    assert (elsewhere / "mlflow.json").read_text() == "cursor"


@pytest.fixture
def faults(s3_port: int, in_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    proxy = Faults(s3_port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setattr(store_module, "_PATIENCE", timedelta(milliseconds=100))
    yield proxy
    proxy.close()


def test_a_store_that_is_away_holds_nothing_up(
    faults: Faults, store: Store, worker: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    faults.fail("PUT", "", 503, times=8)
    with Outbox(worker):
        EventLog(worker).append("start", 0)
        until(lambda: "waits on this disk" in caplog.text)
        assert len(read_events(worker)) == 1
        until(lambda: store.look("events/000000000000000.jsonl") is not None)


# ---- runs, from several machines -----------------------------------------------------------------


@pytest.fixture
def two(in_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Config]:
    """The same configuration, as the machine with that name sees it."""

    def on(name: str) -> Config:
        monkeypatch.setenv("GAN_TRAIN_CACHE", str(tmp_path / name))
        return recipes.change(
            tiny_config(tmp_path / "source", tmp_path / "w"), {"workspace": in_bucket}
        )

    return on


def begun(config: Config) -> Path:
    shards = config.workspace / "shards" / "x"
    shards.mkdir(parents=True)
    return run_folder.new(config, shards)


def test_each_machine_has_a_copy_of_its_own(two: Callable[[str], Config], in_bucket: str) -> None:
    a, b = two("a"), two("b")
    assert a.workspace != b.workspace and a.store == b.store == in_bucket
    assert json.loads(a.model_dump_json()) == json.loads(b.model_dump_json())
    assert recipes.with_absolute_paths(b).store == in_bucket


def test_a_run_is_listed_and_found_elsewhere(two: Callable[[str], Config]) -> None:
    config = two("a")
    run_dir = begun(config)
    with shared.sending(run_dir):
        EventLog(run_dir).append("start", 0)
        checkpoint(run_dir, 100)
    there = two("b")
    (listed,) = run_folder.all_runs(str(there.store))
    assert read_events(listed) == read_events(run_dir)
    (known,) = run_folder.runs_of(there)
    assert known.name == run_dir.name and not (known / "checkpoints").exists()
    found = run_folder.find(there, run_dir.name)
    assert found == known and read_events(found) == read_events(run_dir)
    assert (found / "checkpoints/000000000100/MANIFEST.json").exists()
    assert run_folder.shards_of(found) == there.workspace / "shards" / "x"
    assert run_folder.configuration(found).store == config.store
    with pytest.raises(UserError, match="no such run"):
        run_folder.find(there, "tiny-20000101-000000")


def test_one_machine_trains_a_run(two: Callable[[str], Config]) -> None:
    config = two("a")
    run_dir = begun(config)
    there = run_folder.find(two("b"), run_dir.name)
    with run_folder.exclusive(run_dir):
        assert run_folder.is_trained_now(there)
        with (
            pytest.raises(UserError, match=r"is being trained by process \d+"),
            run_folder.exclusive(there),
        ):
            pass
    assert not run_folder.is_trained_now(there)
    with run_folder.exclusive(there):
        pass


def test_runs_of_one_second_get_names_of_their_own(
    two: Callable[[str], Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped:
        @staticmethod
        def now() -> Stopped:
            return Stopped()

        def strftime(self, form: str) -> str:
            return "20260101-000000"

    monkeypatch.setattr(run_folder, "datetime", Stopped)
    names = {begun(two(machine)).name for machine in ("a", "b")}
    assert names == {"tiny-20260101-000000", "tiny-20260101-000000-1"}


def test_a_lock_of_the_workspace(two: Callable[[str], Config], in_bucket: str) -> None:
    with workspace_lock(two("a"), "registry"):
        assert Store(in_bucket).look("locks/registry") is not None
