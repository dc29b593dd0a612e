"""A registered version gives images in a process that knows nothing of the training: loaded by
MLflow, and served over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gan_train.inference import Generator
from pipelines.registry import versions
from pipelines.registry.tracking import tracking_uri
from tests.pipelines.registry_runs import CLASSES, Run, config, index

pytestmark = pytest.mark.slow

LATENT = [0.5, -1.0, 0.25, 2.0, 0.0, 1.5, -0.75, 0.125]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a registry whose only version is champion of the model `served`."""
    workspace = tmp_path_factory.mktemp("workspace")
    settings = config(workspace, model="served")
    run = Run(settings, index())
    run.checkpoint(64_000, 50.0)  # beyond the last fade: at full resolution
    done = versions.register_best(settings, run.folder, run.index, {})
    assert done.alias == "champion"
    return workspace


@pytest.fixture(scope="module")
def generator(workspace: Path) -> Generator:
    return Generator.load(versions.download(config(workspace, model="served"), "champion"))


def environment(workspace: Path) -> dict[str, str]:
    """As in an activated virtual environment: MLflow calls `uvicorn` by name."""
    uri = tracking_uri(config(workspace))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_REGISTRY_URI": uri, "PATH": path}


def expected(generator: Generator, z: torch.Tensor, classes: list[str]) -> np.ndarray:
    label = torch.tensor([CLASSES.index(name) for name in classes])
    return generator.images(z, label).permute(0, 2, 3, 1).numpy()


_LOAD_AND_DRAW = """
import json, sys
import mlflow.pyfunc, numpy, pandas

model = mlflow.pyfunc.load_model("models:/served@champion")
latent = json.loads(sys.argv[1])
draw = lambda request: model.predict(request)
answers = {
    "records": draw([{"z": latent, "label": "A", "truncation": 1}, {"seed": 7, "label": 2}]),
    "table": draw(pandas.DataFrame({"z": [latent, latent], "label": ["A", "B"]})),
    "float32": draw(pandas.DataFrame({"z": [numpy.float32(latent)], "label": ["A"]})),
    "integers": draw([{"z": [0, 1, 0, 0, 0, 0, 0, 0], "label": "B"}]),
    "gaps": draw(pandas.DataFrame([{"seed": 7, "label": "B"}, {"z": latent, "label": "A"}])),
    "a class called 7": draw([{"seed": 7, "label": 7}]),
    "example": draw(model.input_example),
}
print(json.dumps({name: image.tolist() for name, image in answers.items()}))
import gan_train
print(gan_train.__file__)
print({image.dtype.name for image in answers.values()}, model.metadata.signature)
"""


def test_loaded_in_a_clean_process(workspace: Path, generator: Generator, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOAD_AND_DRAW, json.dumps(LATENT)],
        cwd=tmp_path,
        env=environment(workspace),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    first, library, rest = done.stdout.splitlines()[0], *done.stdout.split("\n", 2)[1:]
    got = {name: np.array(image) for name, image in json.loads(first).items()}
    z, seven = torch.tensor([LATENT]), generator.latents([7])
    whole = torch.tensor([[0.0, 1.0, 0, 0, 0, 0, 0, 0]])
    wanted = {
        "records": expected(generator, torch.cat([z, seven]), ["A", "B"]),
        "table": expected(generator, torch.cat([z, z]), ["A", "B"]),
        "float32": expected(generator, z, ["A"]),
        "integers": expected(generator, whole, ["B"]),
        "gaps": expected(generator, torch.cat([seven, z]), ["B", "A"]),
        "a class called 7": expected(generator, seven, ["7"]),
        "example": expected(generator, generator.latents([0]), ["7"]),
    }
    for name, images in wanted.items():
        np.testing.assert_array_equal(got[name], images, err_msg=name)
    assert got["records"].shape == (2, 8, 8, 1)
    assert np.ptp(got["records"]) > 0

    # the model brings the code that it was registered with
    assert library.endswith("code/gan_train/__init__.py")
    assert "{'uint8'}" in rest
    for part in ("'z': Array(double)", "'label': string", "'truncation': double", "(-1, 8, 8, 1)"):
        assert part in rest


@pytest.fixture(scope="module")
def address(workspace: Path) -> Iterator[str]:
    """`mlflow models serve` on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = workspace / "serve.log"
    command = [
        *(sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"),
        *("-m", "models:/served@champion", "--host", "127.0.0.1", "--port", str(port)),
    ]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            cwd=workspace,
            env=environment(workspace),
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                    break
            except OSError:
                waiting = process.poll() is None and time.monotonic() < deadline
                assert waiting, log.read_text()
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def ask(address: str, inputs: list[dict[str, Any]]) -> Any:
    request = urllib.request.Request(
        address,
        data=json.dumps({"inputs": inputs}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["predictions"]


def test_served_over_http(address: str, generator: Generator) -> None:
    images = ask(address, [{"z": LATENT, "label": "A"}, {"seed": 7, "label": "B"}])
    z = torch.cat([torch.tensor([LATENT]), generator.latents([7])])
    np.testing.assert_array_equal(np.array(images), expected(generator, z, ["A", "B"]))

    integers = ask(address, [{"z": [0] * 7 + [1], "label": 1, "truncation": 1}])
    whole = torch.tensor([[0.0] * 7 + [1.0]])
    np.testing.assert_array_equal(np.array(integers), expected(generator, whole, ["A"]))


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({"seed": 1, "label": "Q"}, "label 'Q' is no class; allowed: 7, A, B"),
        ({"seed": 1, "label": 3}, "is no class"),
        ({"seed": 1, "label": -1}, "is no class"),
        ({"seed": 1}, "name a class"),
        ({"label": "A"}, "either `z` or `seed`"),
        ({"z": LATENT, "seed": 1, "label": "A"}, "either `z` or `seed`"),
        ({"z": [1.0], "label": "A"}, "z has 1 numbers; expected 8"),
        ({"z": ["a"] * 8, "label": "A"}, "valid number"),
        ({"seed": 1, "label": "A", "truncation": 3}, "less than or equal to 2"),
        ({"seed": 1, "label": "A", "trunc": 1}, "trunc"),
        ({"seed": 1, "label": "A", "truncation": 0.5}, "truncation"),
    ],
)
def test_wrong_requests_are_answered_with_400(
    address: str, request_: dict[str, Any], told: str
) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(address, [request_])
    with refused.value as answer:
        assert answer.code == 400
        assert told in answer.read().decode()
