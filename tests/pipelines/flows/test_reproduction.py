"""A registered version is trained again from what the registry has recorded, to the last bit; what
differs is told, and what cannot be repeated is refused before it starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gan_train import recipes
from gan_train.__main__ import train_plain
from gan_train.adversary import Losses
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.families.progan import ProGAN
from gan_train.files.store import Store
from gan_train.runs import run_folder
from gan_train.runs.ledger import LEDGER
from pipelines.cli.main import main
from pipelines.compute.cluster import connected
from pipelines.registry import versions
from pipelines.registry.tracking import connect, tracking_uri
from tests.training import tiny_config, tiny_images

pytestmark = [
    pytest.mark.slow,
    # the code of Ray, MLflow and Prefect uses what they have deprecated
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning"),
    pytest.mark.filterwarnings(r"ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning"),
]
MODEL = "models:/progan-tiny/1"


def scored(root: Path, **changes: Any) -> Config:
    """Twelve steps with an entry after every second, and a score that decides."""
    settings: dict[str, Any] = {
        "train__total_kimg": 0.192,
        "train__threads": 1,
        "evaluate__metrics": ["frechet"],
        **changes,
    }
    return tiny_config(tiny_images(root / "source"), root / "runs", **settings)


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The configuration of a version that one worker has trained without an engine."""
    config = scored(tmp_path_factory.mktemp("registered"))
    run_dir = train_plain(config).run_dir
    index = Index.load(run_folder.shards_of(run_dir))
    assert versions.register_best(config, run_dir, index, {}).version == 1
    return config


@pytest.fixture
def reproduce(
    registered: Config, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command, as a function of further arguments; it returns status, output and errors."""

    def call(*more: str) -> tuple[int, str, str]:
        workspace = f"workspace={registered.workspace}"
        status = main(["reproduce", MODEL, "--set", workspace, *more])
        return status, *capsys.readouterr()

    return call


def test_what_the_registry_records(registered: Config) -> None:
    client = connect(registered)
    tags = client.get_model_version("progan-tiny", "1").tags
    (run_dir,) = run_folder.runs_of(registered)
    entries = [json.loads(line) for line in (run_dir / LEDGER).read_text().splitlines()]
    assert tags["ledger"] == [e["chain"] for e in entries if e["kind"] == "checkpoint"][-1]
    recorded = {f"environment.{k}": v for k, v in entries[0]["environment"].items()}
    assert {"environment.torch", "environment.instructions"} <= recorded.keys() <= tags.keys()
    run = client.get_run(client.get_model_version("progan-tiny", "1").run_id)
    assert recorded.items() <= tags.items() and recorded.items() <= run.data.tags.items()


def test_the_same_bits(reproduce: Callable[..., tuple[int, str, str]]) -> None:
    status, out, _ = reproduce()
    assert status == 0 and "bit-identical" in out and "differs" not in out
    (score,) = (line.split() for line in out.splitlines() if line.startswith("fd_"))
    assert score[1] == score[3] and score[2::2] == ["recorded,", "here"]


def test_what_differs_is_told(
    reproduce: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = ProGAN.loss_g

    def another(self: ProGAN, batch: Any, random: Any, clock: Any) -> Losses:
        found: Losses = objective(self, batch, random, clock)
        factor = 1.5 if clock.step == 5 else 1.0
        return Losses({name: factor * term for name, term in found.terms.items()}, found.metrics)

    monkeypatch.setattr(ProGAN, "loss_g", another)
    status, out, _ = reproduce()
    assert status == 1 and "bit-identical" not in out
    assert "generator differs by at most " in out and "from 0.096 kimg on, networks differ" in out
    assert "nothing known differs here" in out


def test_what_cannot_be_repeated_is_refused(
    registered: Config, reproduce: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    runs = sorted(run_folder.folder(registered).iterdir())
    status, _, err = reproduce("--set", "train.batch=32")
    assert status == 2 and "train.batch: 16 -> 32" in err

    moved = shutil.move(registered.workspace / "shards", tmp_path / "shards")
    source = Path(registered.data.source)
    shutil.move(source, tmp_path / "source")
    status, _, err = reproduce()
    assert status == 2 and "cannot be written anew" in err and "data.source=PLACE" in err
    shutil.copytree(tmp_path / "source", source)
    next(source.rglob("*.png")).unlink()
    status, _, err = reproduce()
    assert status == 2 and "now makes other data" in err
    shutil.rmtree(registered.workspace / "shards")
    shutil.move(moved, registered.workspace / "shards")

    client = connect(registered)
    run_id = client.get_model_version("progan-tiny", "1").run_id
    whole = (runs[0] / LEDGER).read_text()
    (tmp_path / LEDGER).write_text(whole.replace('"seed": 0', '"seed": 1'))
    client.log_artifact(run_id, str(tmp_path / LEDGER))
    status, _, err = reproduce()
    assert status == 2 and "was changed there" in err
    client.log_artifact(run_id, str(runs[0] / LEDGER))
    assert sorted(run_folder.folder(registered).iterdir()) == runs


@pytest.mark.usefixtures("prefect_server")
def test_two_workers_under_ray_in_a_bucket(
    in_bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.flows import pipeline

    config = scored(tmp_path, cluster__workers=2)
    config = recipes.change(config, {"workspace": in_bucket})
    with connected(config.cluster):  # Ray's workers find the bucket in this process's environment
        pipeline.run_flow(config)
        shutil.rmtree(config.data.source)
        settings = (f"workspace={in_bucket}", f"registry.tracking_uri={tracking_uri(config)}")
        options = [word for one in settings for word in ("--set", one)]
        assert main(["reproduce", MODEL, *options]) == 0
    out = capsys.readouterr().out
    assert "2 workers of 1 threads" in out and "bit-identical" in out
    assert len(Store(in_bucket).folders("train")) == 2
