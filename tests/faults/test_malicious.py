"""Files and addresses that would run a command, at every entrance for what comes from outside."""

from __future__ import annotations

import hashlib
import json
import pickle
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch

from gan_train.adversary import ImageShape
from gan_train.data.index import INDEX_NAME, Index
from gan_train.data.reader import open_shard, read_range
from gan_train.data.sharding import shard
from gan_train.data.sources import list_source, local_place
from gan_train.errors import UserError
from gan_train.inference import Generator
from gan_train.pretrained import content, weights
from gan_train.published import stylegan2
from gan_train.runs import checkpoint, warm_start
from tests.training import tiny_config

MARKER = "SPRUNG"
SHAPE = ImageShape(1, 8)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({MARKER!r}, 'w')",)


def pickled() -> bytes:
    return pickle.dumps({"G": Bomb()})


def torch_file() -> bytes:
    file = BytesIO()
    torch.save({"weight": Bomb()}, file)
    return file.getvalue()


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def saved(folder: Path) -> tuple[Any, Any, Path]:
    """A configuration, its networks, and a whole checkpoint of them whose tensors are pickles."""
    config = tiny_config(folder / "source", folder, family__conditional=False)
    adversary = config.family.build(SHAPE, config.train.batch)
    place = folder / "checkpoint"
    averaged = {k: v for k, v in adversary.state_dict().items() if k.startswith("generator.")}
    checkpoint.save_start(place, adversary, averaged, config)
    for file in place.glob("*.safetensors"):
        file.write_bytes(torch_file())
    checkpoint._seal(place)
    return config, adversary, place


def a_generator(folder: Path) -> None:
    Generator.load(saved(folder)[2])


def networks_to_start_from(folder: Path) -> None:
    _, adversary, place = saved(folder)
    warm_start.start_from(str(place), adversary, {})


def a_checkpoint_to_resume(folder: Path) -> None:
    config, adversary, place = saved(folder)
    state = {"format": checkpoint.FORMAT, "data": "0" * 64, "stage": "", "clock": {}}
    state["config"] = config.model_dump(mode="json")
    (place / "state.json").write_text(json.dumps(state))
    checkpoint.load(place, adversary, {}, config, "0" * 64)


def a_published_pickle(folder: Path) -> None:
    stylegan2.load(written(folder / "networks.pkl", pickled()))


def a_published_safetensors(folder: Path) -> None:
    stylegan2.load(written(folder / "networks.safetensors", pickled()))


def trusted_weights(folder: Path) -> None:
    data = torch_file()
    content._read_state(str(written(folder / "w.pt", data)), hashlib.sha256(data).hexdigest())


def weights_at_a_file_address(folder: Path) -> None:
    place = written(folder / "w", pickled())
    weights.fetch(place.as_uri(), "0" * 64, folder)  # with its digest, it is a trusted file


def weights_at_a_pipe_address(folder: Path) -> None:
    weights.fetch(f"pipe://touch {MARKER}", "0" * 64, folder)


def a_shard_at_a_pipe_address(folder: Path) -> None:
    open_shard(f"pipe:touch {MARKER}")


def a_shard_at_a_file_address(folder: Path) -> None:
    open_shard("file://host/shard-000000.tar")


def a_source_at_a_pipe_address(folder: Path) -> None:
    list_source(local_place(f"pipe:touch {MARKER}"), folder, 0)


def poisoned(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A stored data set, whose index was changed."""
    directory = shard(tiny_config(folder / "source", folder).data, folder)
    path = directory / INDEX_NAME
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    return directory


def an_index_that_names_a_pipe(folder: Path) -> None:
    def change(tree: dict[str, Any]) -> None:
        tree["shards"][0]["name"] = f"pipe:touch {MARKER}; true.tar"

    Index.load(poisoned(folder, change))


def an_index_that_names_another_folder(folder: Path) -> None:
    def change(tree: dict[str, Any]) -> None:
        tree["shards"][0]["name"] = "../../shard-000000.tar"

    Index.load(poisoned(folder, change))


def a_shard_with_a_pickle(folder: Path) -> None:
    directory = poisoned(folder, lambda tree: None)
    index = Index.load(directory)
    place = directory / index.shards[0].name
    with tarfile.open(place) as tar:
        members = [(member.name, tar.extractfile(member)) for member in tar]
        kept = [(name, file.read()) for name, file in members if file]
    with tarfile.open(place, "w") as tar:
        for name, data in kept:
            label = name.endswith(".cls")
            member = tarfile.TarInfo(name.replace(".cls", ".pyd"))
            data = pickled() if label else data
            member.size = len(data)
            tar.addfile(member, BytesIO(data))
    read_range(index, directory, 0, 0, 1)


ENTRANCES = [
    *(a_generator, networks_to_start_from, a_checkpoint_to_resume),
    *(a_published_pickle, a_published_safetensors, trusted_weights),
    *(weights_at_a_file_address, weights_at_a_pipe_address),
    *(a_shard_at_a_pipe_address, a_shard_at_a_file_address, a_source_at_a_pipe_address),
    *(an_index_that_names_a_pipe, an_index_that_names_another_folder, a_shard_with_a_pickle),
]


@pytest.mark.fault(
    "a malicious pickle as checkpoint, initial weights, published file, feature weights or shard "
    "member; `pipe:` and `file:` addresses; an index that names other files",
    "refused in one sentence, and no command was run",
)
@pytest.mark.parametrize("enter", ENTRANCES, ids=lambda enter: enter.__name__)
def test_nothing_is_run(
    enter: Callable[[Path], None],
    tiny_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        enter(tmp_path)
    assert not list(tmp_path.rglob(f"*{MARKER}*"))


def test_the_bomb_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, given = Bomb().__reduce__()
    run(*given).close()
    assert Path(MARKER).exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # MLflow's own types
def test_mlflow_unpickles_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

    monkeypatch.chdir(tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    (model / "python_model.pkl").write_bytes(pickled())
    (model / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: mlflow.pyfunc.model\n"
        "    cloudpickle_version: '3.0'\n    python_model: python_model.pkl\n"
    )
    with pytest.raises(MlflowException, match="pickle"):
        mlflow.pyfunc.load_model(str(model))
    assert not Path(MARKER).exists()
