"""The Inception extractor on a small TorchScript module with the published file's calling
convention. The published file itself is too large to ship, so no test runs it."""

from __future__ import annotations

import hashlib
import http.server
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gan_train.errors import UserError
from gan_train.files.store import Store
from gan_train.metrics import extractors
from gan_train.metrics.extractors import InceptionExtractor, build_extractor, identify
from gan_train.pretrained import weights
from gan_train.pretrained.weights import fetch

CPU = torch.device("cpu")


class _Detector(nn.Module):
    """Takes uint8 [n, 3, H, W]; 2048 features, or with `return_features=False` 3 numbers."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.mix = nn.Parameter(torch.randn(3, 2048, generator=generator))

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        mean = img.to(torch.float32).mean(dim=[2, 3])
        return mean @ self.mix if return_features else mean


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "detector.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # writing TorchScript, not reading it
        torch.jit.save(torch.jit.script(_Detector()), str(path))
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


NAME = "inception_v3_2015_12_05"


def test_features_come_from_the_script(script: Path, tmp_path: Path) -> None:
    extractor = build_extractor(NAME, str(script), _digest(script), tmp_path, CPU)
    images = torch.arange(2 * 4, dtype=torch.uint8).view(2, 1, 2, 2)
    features, layout = extractor.features_and_layout(images)
    expected = _Detector()(images.expand(-1, 3, -1, -1), return_features=True)
    torch.testing.assert_close(features, expected.detach())
    assert features.shape == (2, 2048) and layout is features


def test_only_the_published_file_gives_fid(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = _digest(script)
    other = identify(NAME, str(script), digest, Path())
    assert other.frechet_name == f"fd_inception_{digest[:8]}"
    assert (other.suffix, other.name) == (f"_inception_{digest[:8]}", f"inception_{digest[:8]}")
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", digest)
    published = identify(NAME, str(script), digest, Path())
    assert (published.frechet_name, published.suffix) == ("fid", "")
    assert published.name == "inception_v3_2015_12_05"


@pytest.mark.parametrize(("location", "sha256"), [(None, "0" * 64), ("x.pt", None)])
def test_path_and_digest_are_required(location: str | None, sha256: str | None) -> None:
    with pytest.raises(UserError, match=r"evaluate\.weights.*evaluate\.sha256"):
        identify(NAME, location, sha256, Path())


def test_a_wrong_digest_is_refused_before_the_script_is_opened(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("opened"))
    with pytest.raises(UserError, match="was not opened"):
        build_extractor(NAME, str(script), "0" * 64, tmp_path, CPU)
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match="was not kept"):
        build_extractor(NAME, script.as_uri(), "0" * 64, cache, CPU)
    assert list(cache.iterdir()) == []


def test_a_network_of_another_shape_is_refused(script: Path, tmp_path: Path) -> None:
    extractor = InceptionExtractor(str(script), _digest(script), tmp_path, CPU, dims=100)
    with pytest.raises(UserError, match="not the published"):
        extractor.features(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))


def test_a_url_is_downloaded_once_and_checked_again(script: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.pt"
    source.write_bytes(script.read_bytes())
    digest, cache = _digest(source), tmp_path / "cache"
    assert fetch(source.as_uri(), digest, cache) == source.read_bytes()
    source.unlink()
    assert fetch(source.as_uri(), digest, cache) == script.read_bytes()
    (kept,) = cache.iterdir()
    kept.write_bytes(b"damaged")
    with pytest.raises(UserError, match="was not opened"):
        fetch(source.as_uri(), digest, cache)


def test_weights_in_a_bucket(script: Path, in_bucket: str, tmp_path: Path) -> None:
    Store(in_bucket).send(script, "x.pt")
    url, cache = f"{in_bucket}/x.pt", tmp_path / "cache"
    with pytest.raises(UserError, match="it was not kept"):
        fetch(url, "0" * 64, cache)
    assert list(cache.iterdir()) == []
    assert fetch(url, _digest(script), cache) == script.read_bytes()
    Store(in_bucket).delete("x.pt")
    assert fetch(url, _digest(script), cache) == script.read_bytes()
    with pytest.raises(UserError, match=r"cannot fetch s3://.*/none\.pt"):
        fetch(f"{in_bucket}/none.pt", "1" * 64, cache)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x.pt", "ftp://127.0.0.1/x.pt", "pipe://ls"])
def test_other_schemes_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="allowed: a path, or a URL"):
        fetch(url, "0" * 64, tmp_path)


def test_oversized_and_missing_files(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="give the path of a local copy"):
        fetch((tmp_path / "none.pt").as_uri(), "0" * 64, tmp_path / "cache")
    monkeypatch.setattr(weights, "_LIMIT", 100)
    with pytest.raises(UserError, match="larger than 100 bytes"):
        fetch(script.as_uri(), _digest(script), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.fixture
def redirect() -> Iterator[str]:
    """A loopback server that sends every request elsewhere."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/x.pt"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_redirection_cannot_leave_the_allowed_schemes(
    redirect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain HTTP stands in for HTTPS, as the scheme of the first request alone."""
    allowed = weights._allowed_scheme
    monkeypatch.setattr(
        weights,
        "_allowed_scheme",
        lambda url, setting: None if url == redirect else allowed(url, setting),
    )
    with pytest.raises(UserError, match="elsewhere has the scheme 'http'"):
        fetch(redirect, "0" * 64, tmp_path)
