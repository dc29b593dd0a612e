"""What no checksum shows, the ledger does: and where."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gan_train import recipes
from gan_train.__main__ import train_plain
from gan_train.errors import UserError
from gan_train.files.atomic import write_json
from gan_train.files.digests import sha256_of
from gan_train.runs import run_folder
from gan_train.runs.checkpoint import FOLDER, MANIFEST, find_damage, list_checkpoints
from gan_train.runs.integrity import STATE
from gan_train.runs.ledger import LEDGER, Ledger, read_entries, read_lines
from gan_train.training.verification import Row, check_files, repeat
from pipelines.cli.main import main
from tests.training import run, tiny_config, tiny_images


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints at 64, 128 and 192 images, and entries every 32."""
    root = tmp_path_factory.mktemp("trained")
    settings: dict[str, Any] = {"train__checkpoint_kimg": 0.064, "train__total_kimg": 0.192}
    return train_plain(tiny_config(tiny_images(root / "source"), root, **settings)).run_dir


@pytest.fixture
def run_dir(trained: Path) -> Path:
    """A copy of that run beside it."""
    for path in trained.parent.glob("copy*"):
        shutil.rmtree(path)
    return shutil.copytree(trained, trained.parent / "copy", symlinks=True)


def forge(folder: Path, name: str = "networks.safetensors") -> None:
    """Flip a bit of the last number in a file of a checkpoint, and renew its checksum."""
    data = bytearray((folder / name).read_bytes())
    data[-2] ^= 1
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    write_json(folder / MANIFEST, manifest | {name: sha256_of(folder / name)})
    assert find_damage(folder) is None


def checked(run_dir: Path, status: int, *more: str) -> None:
    """Call the command, and compare its exit status."""
    workspace = str(run_dir.parents[1])
    assert main(["verify", run_dir.name, "--workspace", workspace, *more]) == status


def test_a_run_as_it_was_trained(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in run_dir.rglob("*")}
    checked(run_dir, 0, "--from", "0.07", "--to", "0.15")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [
        ["0.064", "-", "0.128", "3", "same"],
        ["0.128", "-", "0.16", "1", "same"],
    ]
    assert {p: p.stat().st_mtime_ns for p in run_dir.rglob("*")} == before


@pytest.mark.fault(
    "a bit that flips in a checkpoint whose checksum is then renewed",
    "`gan-train verify` names checkpoint and file, and shows that the run was trained right; "
    "resuming from it is refused",
)
@pytest.mark.parametrize("name", ["networks", "generator", "optimizers"])
def test_a_forged_checkpoint(name: str, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    middle, newest = list_checkpoints(run_dir)[1], list_checkpoints(run_dir)[0]
    forge(middle, f"{name}.safetensors")
    only = ["--files"] if name != "networks" else []
    checked(run_dir, 1, *only)
    _head, first, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("0.128 ") and f"{FOLDER}/{middle.name}: {name}.safetensors" in first
    if not only:  # the stretch before goes on past it, from the checkpoint before
        assert [row.split() for row in rows] == [
            ["0", "-", "0.064", "3", "same"],
            ["0.064", "-", "0.192", "6", "same"],
        ]
    shutil.rmtree(newest)
    config = recipes.change(run_folder.configuration(run_dir), {"train.total_kimg": 0.224})
    with pytest.raises(UserError, match=r"not what was saved there.* Move the folder away"):
        run(config, run_dir)


# ---- tampering ----------------------------------------------------------------------------------


def _a_line_of_the_ledger(run_dir: Path) -> None:
    path = run_dir / LEDGER
    path.write_text(path.read_text().replace('"nimg": 96, "step": 6', '"nimg": 96, "step": 7'))


def _a_curve(run_dir: Path) -> None:
    path = run_dir / "events.jsonl"
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        event = json.loads(line)
        if event["kind"] == "metrics" and event["nimg"] == 96:
            event["values"]["loss/logistic"] = 0.01
            lines[number] = json.dumps(event)
    path.write_text("\n".join(lines) + "\n")


def _a_score(run_dir: Path) -> None:
    path = run_dir / "events.jsonl"
    changed = []
    for line in path.read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "checkpoint" and event["nimg"] == 128:
            event["scores"] = dict.fromkeys(event["scores"], 0.0)
        changed.append(json.dumps(event))
    path.write_text("\n".join(changed) + "\n")


def _the_whole_chain(run_dir: Path) -> None:
    """Other weights at 96 images, in a chain that was made anew."""
    entries = read_entries(run_dir)
    (run_dir / LEDGER).unlink()
    ledger = Ledger(run_dir)
    for entry in entries:
        changed = {"networks": "0" * 32} if entry["nimg"] == 96 else {}
        ledger._append({k: v for k, v in entry.items() if k != "chain"} | changed)
    assert all(line.sound for line in read_lines(run_dir))


def _chain_and_checkpoints(run_dir: Path) -> None:
    """The same, and the checkpoints behind it tell of the new chain."""
    _the_whole_chain(run_dir)
    chains = {e["nimg"]: e["chain"] for e in read_entries(run_dir) if e["kind"] == "checkpoint"}
    for folder in list_checkpoints(run_dir):
        state = json.loads((folder / STATE).read_bytes())
        write_json(folder / STATE, state | {"ledger": chains[int(folder.name)]})
        manifest = json.loads((folder / MANIFEST).read_bytes())
        write_json(folder / MANIFEST, manifest | {STATE: sha256_of(folder / STATE)})


@pytest.mark.fault(
    "a line of the ledger, a curve or a score of the event log changed; then the whole chain of "
    "the ledger made anew, and the checkpoints with it",
    "`gan-train verify` names the stretch in which it lies",
)
@pytest.mark.parametrize(
    ("harm", "begin", "end", "words"),
    [
        (_a_line_of_the_ledger, 64, 96, "line 6 of ledger.jsonl was changed"),
        (_a_curve, 64, 96, "the curves in the event log were changed"),
        (_a_score, 128, 128, "the scores in the event log were changed"),
        (_the_whole_chain, 128, 128, "it stands elsewhere in the ledger"),
        (_chain_and_checkpoints, 64, 128, "networks differ from 0.096 kimg on"),
    ],
)
def test_a_tampered_record(
    harm: Callable[[Path], None], begin: int, end: int, words: str, run_dir: Path
) -> None:
    assert list(check_files(run_dir)) == []
    harm(run_dir)
    deep = harm is _chain_and_checkpoints
    rows = list(repeat(run_dir, 64, 128) if deep else check_files(run_dir))
    found = [row for row in rows if row.fault]
    assert found and (found[0].begin, found[0].end) == (begin, end)
    assert words in found[0].fault
    if deep:
        assert rows == found == [Row(64, 128, 0, words)]
