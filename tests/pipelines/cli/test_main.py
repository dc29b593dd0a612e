"""The command line: answers fast, teaches, and starts nothing when something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gan_train import recipes
from gan_train.bench.rehearsal import Rehearsed
from gan_train.config import Config
from gan_train.data.planning import ShardPlan
from gan_train.data.sharding import shard
from gan_train.runs import run_folder
from pipelines.cli.main import main
from tests.training import run, tiny_config

HEAVY = {"ray", "prefect", "mlflow"}


def recipe(config: Config, folder: Path) -> str:
    """A recipe file of this configuration."""
    path = folder / f"{config.name}.yaml"
    path.write_text(recipes.dump(config), encoding="utf-8")
    return str(path)


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a clean interpreter."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        check=False,
    )


REPORT = f"""
import sys
from pipelines.cli.main import main
status = main(sys.argv[1:])
print("imported:", sorted({sorted(HEAVY)!r} & sys.modules.keys()), "status:", status)
""".replace("['mlflow', 'prefect', 'ray'] &", "{'mlflow', 'prefect', 'ray'} &")


def test_help_names_every_command_and_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert "gan-train run demo --dry-run" in text
    for name in ("run", "shard", "train", "evaluate", "promote", "config"):
        assert f"\n    {name} " in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "demo", "--set", "train.bacth=64"], "train.bacth=64: unknown key; did you mean"),
        (["run", "nowhere"], "nowhere: no such recipe"),
        (["run", "demo", "--set", "data.source=/nowhere"], "data.source: /nowhere"),
        (["run", "demo", "--set", "cluster.workers=5"], "5"),
        (["run", "demo", "--set", "train.batch=30"], "must be a multiple of 8"),
        (["evaluate", "nothing"], "nothing: no run in runs/train"),
        (
            ["train", "demo", "--plain", "--set", "workspace=s3://bucket/team"],
            "training writes to a folder; name one with --set workspace=FOLDER, or train with Ray",
        ),
        (
            [
                "run",
                "demo",
                "--set",
                "workspace=s3://bucket/team",
                "--set",
                "cluster.jobs=http://h:1",
            ],
            "With one in a bucket, leave it empty and submit the whole run: gan-train submit",
        ),
        (["config"], "name a recipe"),
        (["bench-step", "nowhere"], "nowhere: no such recipe"),
        (["run", "demo", "--set", "family.z_dim=1000000000"], "at most 1048576"),
        (["run", "demo", "--resume", "r" * 300], "File name too long; check that the path"),
        (["run", "demo", "--set", "workspace=/dev/null/x"], "Not a directory; check that the path"),
    ],
)
def test_a_mistake_exits_2_with_one_message(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    glyphs: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    if "demo" in arguments and arguments[0] == "run":
        arguments = [*arguments[:2], "--set", f"data.source={glyphs}", *arguments[2:]]
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.startswith("gan-train: ")
    assert "Traceback" not in said.err and said.out == ""
    assert not list(tmp_path.iterdir())


def test_a_mistake_is_found_before_ray_prefect_and_mlflow_are_imported(tmp_path: Path) -> None:
    done = python(REPORT, "run", "demo", "--set", "train.bacth=64")
    assert "imported: [] status: 2" in done.stdout, done.stderr


def test_dry_run_shows_the_plan_and_writes_no_more_than_what_it_read(
    tiny_source: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_source, tmp_path / "workspace")
    done = python(REPORT, "run", recipe(config, tmp_path), "--dry-run")
    assert "imported: [] status: 0" in done.stdout, done.stderr
    assert {path.name for path in config.workspace.glob("*")} <= {"sources"}
    assert "images      24 of 8 px, grey, 3 classes" in done.stdout
    assert "shards      2 in " in done.stdout and "not written yet" in done.stdout
    assert "workers     1 x 1 CPU" in done.stdout
    stages = [line.split() for line in done.stdout.splitlines() if line.startswith(("4 ", "8"))]
    assert [stage[0] for stage in stages] == ["4", "8-fade", "8"]
    assert [stage[4] for stage in stages] == ["0.1", "0.1", "0.2"]
    assert all(float(stage[5]) > 0 for stage in stages), "images per second"
    assert "time        " in done.stdout and " expected: training " in done.stdout
    assert "GiB a worker, at the peak" in done.stdout


def test_a_full_verification_is_planned_and_asked_of_the_flow(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool, bool]] = []

    def flow(config: Config, name: str, verify: bool, plan: ShardPlan) -> Path:
        asked.append((name, verify, plan.verify))
        return plan.directory

    monkeypatch.setattr("pipelines.cli.main._flow", flow)
    path = recipe(tiny_config(tiny_source, tmp_path / "workspace"), tmp_path)
    assert main(["shard", path]) == 0 and main(["shard", path, "--verify"]) == 0
    assert asked == [("shard_flow", False, False), ("shard_flow", True, True)]


def test_dry_run_knows_what_is_there(
    tiny_source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = Rehearsed(dict.fromkeys(("4", "8-fade", "8"), 1.0))
    monkeypatch.setattr("pipelines.flows.price.rehearse", lambda *_: measured)
    config = tiny_config(tiny_source, tmp_path / "workspace")
    earlier = run_folder.new(config, shard(config.data, config.workspace))
    assert main(["run", recipe(config, tmp_path), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "written before: hashes are verified" in text
    assert f"1 of this recipe, newest {earlier.name}" in text


def test_the_planned_checkpoints_are_those_that_are_written(
    tiny_source: Path, tmp_path: Path
) -> None:
    from gan_train.data.index import Index
    from gan_train.training.schedule import check, checkpoints, schedule_end

    config = tiny_config(
        tiny_source, tmp_path, train__checkpoint_kimg=0.048, train__keep_checkpoints=99
    )
    run_dir = run(config, tmp_path / "run")
    stages = check(config, Index.load(next((tmp_path / "shards").iterdir())).image_shape, 1)
    planned = checkpoints(config, stages, schedule_end(config, stages))
    assert [row["kimg"] * 1000 for row in run_folder.score_table(run_dir)] == planned


def test_config_shows_every_setting_and_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "demo", "--set", "train.batch=48"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert recipes.check(shown) == recipes.load("demo", ["train.batch=48"])
    assert main(["config", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"].keys() == Config.model_fields.keys() - {"store"}


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "pipelines.cli.main", "config", "--schema"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()  # as `| head` does
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_a_connection_that_breaks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Config:
        raise BrokenPipeError

    monkeypatch.setattr(recipes, "load", broken)
    with pytest.raises(BrokenPipeError):
        main(["config", "demo"])


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--debug", "config", "demo", "--set", "train.batch=0"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--debug"]])
def test_an_error_that_nobody_expected_is_told_in_two_lines(options: list[str]) -> None:
    code = """
import sys
from pipelines.cli import main
from gan_train import recipes
recipes.load = lambda *_: 1 / 0
sys.exit(main.main(sys.argv[1:]))
"""
    done = python(code, *options, "config", "demo")
    assert done.returncode == 1 and ("Traceback" in done.stderr) == bool(options)
    if not options:
        assert done.stderr == (
            "gan-train: ZeroDivisionError: division by zero\n"
            "The option --debug shows where it arose.\n"
        )


@pytest.mark.slow
def test_plain_training_imports_neither_ray_nor_prefect_nor_mlflow(
    tiny_source: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_source, tmp_path / "workspace")
    done = python(REPORT, "train", recipe(config, tmp_path), "--plain")
    assert "imported: [] status: 0" in done.stdout, done.stderr
    (run_dir,) = run_folder.folder(config).iterdir()
    assert run_folder.finished(run_folder.read_events(run_dir))


@pytest.mark.slow
def test_torchrun_trains_on_two_workers(tiny_source: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_source, tmp_path / "workspace")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "gan_train", recipe(config, tmp_path)),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (run_dir,) = run_folder.folder(config).iterdir()
    assert run_folder.finished(run_folder.read_events(run_dir))
