"""`gan-train serve` as it is typed, and the gallery of a registered version in a real browser."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gan_train import recipes
from gan_train.errors import UserError
from pipelines.cli.main import main
from pipelines.cli.sampling import registered_model
from pipelines.registry import versions
from pipelines.serving.server import TOKEN, address_of, listen, token_for
from tests import browser
from tests.pipelines.registry_runs import Run, config, index
from tests.training import stylegan

ROOT = Path(__file__).parents[3]


# ---- what is typed -----------------------------------------------------------------------------


def named(model: str, version: str | None = None, *overrides: str) -> tuple[str, str]:
    """The name of the registered model that is meant, and its version."""
    given = argparse.Namespace(model=model, version=version, overrides=list(overrides))
    found = registered_model(given)
    assert found is not None
    return versions.model_name(found[0]), found[1]


def test_a_model_is_named_by_recipe_or_address(tmp_path: Path) -> None:
    assert named("demo") == ("progan-demo", "champion")
    assert named("demo", "3") == ("progan-demo", "3")
    assert named("models:/faces") == ("faces", "champion")
    assert named("models:/faces", "2") == ("faces", "2")
    assert named("models:/faces@best") == ("faces", "best")
    assert named("models:/7/12") == ("7", "12")
    for address in ("models:", "models:/", "models:/a/b", "models:/a@b@c", "models:/a'b"):
        with pytest.raises(UserError, match="allowed: models:/NAME@ALIAS or"):
            named(address)
    with pytest.raises(UserError, match="leave out --version"):
        named("models:/faces/3", "2")


def test_an_address_has_no_settings_for_a_projection(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["project", "models:/faces", str(tmp_path / "a.png")]) == 2
    assert "models:/faces has no settings of its own: name its --recipe" in capsys.readouterr().err


def test_other_machines_need_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    file = tmp_path / "token"
    assert token_for("127.0.0.1", None) is None and token_for("::1", None) is None
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", ""):
        with pytest.raises(UserError, match=r"openssl rand -hex 16 > token.*--token-file"):
            token_for(host, None)
    with pytest.raises(UserError, match="cannot be read"):
        token_for("0.0.0.0", file)
    file.write_text("short\n")
    with pytest.raises(UserError, match="has 5 characters, at least 16 are needed"):
        token_for("127.0.0.1", file)
    file.write_text("0123456789abcdef\n")
    assert token_for("0.0.0.0", file) == "0123456789abcdef"
    monkeypatch.setenv(TOKEN, "f" * 32)
    assert token_for("0.0.0.0", None) == "f" * 32


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        assert address_of(listening) == f"http://127.0.0.1:{port}/"
        assert main(["serve", "demo", "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert f"127.0.0.1:{port} cannot be listened on" in said and "another --port" in said
    with pytest.raises(UserError, match="cannot be listened on"):
        listen("no.such.name.invalid", 0)
    with pytest.raises(UserError, match="allowed: 0 to 65535"):
        listen("127.0.0.1", 70_000)


class ListensOnIPv6:
    """What a socket of IPv6 tells of itself, also on a machine without it."""

    def getsockname(self) -> tuple[str, int, int, int]:
        return "::1", 8000, 0, 0


def test_an_address_of_the_next_generation() -> None:
    assert address_of(ListensOnIPv6()) == "http://[::1]:8000/"


# ---- a registered version in a browser ---------------------------------------------------------


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server of a registered StyleGAN, started by its command."""
    settings = recipes.change(config(tmp_path, model="served"), {"family": stylegan(2)})
    run = Run(settings, index())
    run.checkpoint(64_000, 50.0)
    versions.register_best(settings, run.folder, run.index, {})
    command = [sys.executable, "-m", "pipelines.cli.main", "serve", "models:/served@champion"]
    options = ["--set", f"workspace={tmp_path}", "--port", "0"]
    with subprocess.Popen(
        [*command, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            assert process.stdout is not None
            title, _, address = process.stdout.readline().strip().partition(": ")
            assert title == "served version 1", process.communicate()[1]
            yield address
            process.send_signal(signal.SIGINT)
            said = process.communicate()[1]
            assert (process.returncode, said) == (130, "gan-train: stopped\n")
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.browser
def test_the_gallery_of_a_registered_version(address: str, tmp_path: Path) -> None:
    with httpx.Client(base_url=address, timeout=60) as client:
        told = client.get("/model.json").json()
        assert (told["name"], told["version"], told["alias"]) == ("served", 1, "champion")
        assert told["licence"] == "OFL-1.1" and told["measure"] in told["scores"]
        assert told["command"] == f"models:/served/1 --set=workspace={tmp_path}"

        chosen = browser.program()
        assert chosen is not None
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        options += [f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=30000"]
        page = subprocess.run(
            [chosen, *options, address], capture_output=True, text=True, timeout=120
        )
        # this text is set once all images have loaded
        assert "16 images, seeds 0 to 15" in page.stdout, page.stdout + page.stderr
        assert 'src="image.png?seed=1&amp;class=A"' in page.stdout
        assert 'src="mix.png?seed=0&amp;with=1&amp;layers=0-1&amp;class=7"' in page.stdout
        assert client.get("/health").json()["images"] >= 16
