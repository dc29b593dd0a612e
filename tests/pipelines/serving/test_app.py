"""The server as clients meet it: over HTTP, on generators that were never trained."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gan_train.images import origin
from gan_train.images.origin import Identity
from gan_train.images.pixels import from_picture
from gan_train.inference import Generator
from gan_train.sampling.generate import generate
from gan_train.sampling.mixing import mix
from gan_train.sampling.painter import Look
from gan_train.sampling.whence import difference
from pipelines.serving import limits
from tests.pipelines.serving.conftest import CLASSES, Serve
from tests.unit.sampling.fakes import NoStyles, linear

TOKEN = "0123456789abcdef"


def pixels(file: bytes | Path) -> NDArray[np.int16]:
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
        return np.asarray(picture).astype(np.int16)


def of(answer: httpx.Response) -> NDArray[np.int16]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return pixels(answer.content)


def near(one: NDArray[np.int16], other: NDArray[np.int16]) -> bool:
    return one.shape == other.shape and int(np.abs(one - other).max()) <= 1


def refusal(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body.keys() == {"error"}
    return str(body["error"])


def png(width: int, height: int, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    picture = Image.effect_noise((width, height), 60).convert(mode)
    picture.save(file, "PNG")
    return file.getvalue()


# ---- images from seeds -------------------------------------------------------------------------


def test_images_are_those_of_the_commands(serve: Serve, styled: Generator, tmp_path: Path) -> None:
    call, look = serve(styled), Look(truncation=0.7)
    generate(styled, [3], "A", look, tmp_path / "images")
    one = of(call("/image.png?seed=3&class=A&truncation=0.7"))
    assert near(one, pixels(tmp_path / "images" / "3.png"))
    assert not near(one, of(call("/image.png?seed=4&class=A&truncation=0.7")))
    assert not near(one, of(call("/image.png?seed=3&class=A")))

    # without a class, all classes in turn
    generate(styled, range(7), None, Look(), tmp_path / "grid.png")
    assert near(of(call("/grid.png?seeds=0-6")), pixels(tmp_path / "grid.png"))
    wide = of(call("/grid.png?seeds=0-6&columns=7"))
    assert wide.shape == (64, 7 * 64, 3)

    mix(styled, [1], [2], "0-1", "A", look, tmp_path / "mix.png")
    cell = pixels(tmp_path / "mix.png")[64::8, 64::8]
    query = {"seed": 1, "with": 2, "layers": "0-1", "class": "A", "truncation": 0.7}
    assert near(of(call("/mix.png", params=query)), cell)


@pytest.mark.parametrize(
    "path",
    [
        "/image.png?seed=3&class=A&truncation=0.7",
        "/image.png?seed=4",
        "/grid.png?seeds=0-6&columns=3",
        "/mix.png?seed=1&with=2&layers=0-1&class=A&truncation=0.7",
    ],
)
def test_an_answer_says_where_it_comes_from(path: str, serve: Serve, styled: Generator) -> None:
    styled.identity = Identity(model="models:/tiny/1", weights_sha256="ab" * 32)
    data = serve(styled)(path).content
    said = origin.read(data, path)
    assert said.model == "models:/tiny/1" and said.truncation == (0.7 if "0.7" in path else 1)
    found = difference(styled, data, said)
    assert found is not None and found <= 1


def test_a_browser_draws_nothing_twice(serve: Serve, styled: Generator) -> None:
    call = serve(styled)
    first = call("/image.png?seed=3&class=A")
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "private, no-cache"
    again = call("/image.png?class=A&seed=3", headers={"If-None-Match": f'"x", {tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert call("/health").json()["images"] == 1
    others = ("/image.png?seed=4&class=A", "/grid.png?seeds=3&class=A", "/mix.png?seed=3&class=A")
    assert len({tag, *(call(other).headers["etag"] for other in others)}) == 4
    other_weights = serve(styled, weights="cd" * 32)
    assert other_weights("/image.png?seed=3&class=A").headers["etag"] != tag


def test_concurrent_requests_share_forward_passes(serve: Serve, styled: Generator) -> None:
    call = serve(styled)
    paths = [f"/image.png?seed={seed}&truncation={0.5 + seed % 2}" for seed in range(24)]
    alone = [of(call(path)) for path in paths]
    before = call("/health").json()
    assert (before["images"], before["passes"]) == (24, 24)
    end, batcher = threading.Event(), call.state.batcher
    batcher.run(end.wait)  # as if a long pass went on
    with ThreadPoolExecutor(24) as pool:
        answers = [pool.submit(call, path) for path in paths]
        while batcher.waiting < 24:
            assert not any(answer.done() for answer in answers)
        end.set()
        together = [of(answer.result()) for answer in answers]
    after = call("/health").json()
    assert (after["images"], after["passes"], after["waiting"]) == (48, 25, 0)
    assert all(near(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/image.png?seed=x", "seed: Input should be a valid integer"),
        ("/image.png?seed=-1", "seed: "),
        (f"/image.png?seed={2**63}", "seed: "),
        ("/image.png?sead=1", "sead: Extra inputs"),
        ("/image.png?class=Z", "class Z: allowed: A, <b onclick"),
        ("/image.png?truncation=2.5", "truncation: "),
        ("/image.png?truncation=nan", "truncation: "),
        ("/grid.png?seeds=0-64", "seeds 0-64: allowed: at most 64 images"),
        ("/grid.png?seeds=5-x", "seeds 5-x: allowed: numbers and ranges"),
        (f"/grid.png?seeds={'1' * 1001}", "seeds: "),
        ("/grid.png?columns=0", "columns: "),
        ("/mix.png?layers=99", "layers 99: allowed: "),
    ],
)
def test_wrong_requests_are_told_why(path: str, why: str, serve: Serve, styled: Generator) -> None:
    call = serve(styled)
    assert refusal(call(path), 400).startswith(why)
    assert call("/health").json()["passes"] == 0


def test_what_is_not_there(serve: Serve) -> None:
    call = serve(Generator(NoStyles(), "plain"))
    assert "needs a family with styles" in refusal(call("/mix.png"), 400)
    assert refusal(call("/image.png?truncation=0.5"), 400).startswith("truncation 0.5 needs")
    assert "without classes" in refusal(call("/image.png?class=A"), 400)
    assert refusal(call("/nothing"), 404) == "Not Found"
    assert refusal(call.client.post("/image.png", content=b"x"), 405)
    assert refusal(call("/static/../app.py"), 404)


def test_large_images_come_in_small_grids(styled: Generator) -> None:
    large = linear()
    large.shape = large.adversary.shape = type(large.shape)(1, 1024)
    assert (limits.most_images(large), limits.most_images(styled)) == (16, 64)


def test_room_is_bounded() -> None:
    room = limits.Room(10, "things")
    with room.taken(6):
        with pytest.raises(limits.Refused, match="too many things") as refused, room.taken(5):
            pass
        assert refused.value.status == 503
        with room.taken(4):
            pass
    with room.taken(10):
        pass


# ---- pictures that are sent --------------------------------------------------------------------


def test_a_picture_is_upscaled(serve: Serve, upscaler: Generator) -> None:
    call, picture = serve(upscaler), png(20, 12)
    answer = call.client.post("/image.png", content=picture)
    made, said = of(answer), origin.read(answer.content, "a.png")
    assert said.command == "upscale"
    assert said.source_sha256 == hashlib.sha256(picture).hexdigest()
    expected = upscaler.converted(from_picture(Image.open(io.BytesIO(picture))))
    assert np.array_equal(made, expected.permute(1, 2, 0).numpy())
    post = call.client.post
    assert "no domains" in refusal(post("/image.png?to=A", content=picture), 400)
    assert "takes pictures" in refusal(call("/image.png?seed=1"), 400)
    assert "Upscale" not in call("/").text and "times" not in call("/").text


def test_a_picture_is_translated(serve: Serve, translator: Generator) -> None:
    call, picture = serve(translator), png(16, 16, "L")  # grey becomes RGB
    a, b = (of(call.client.post(f"/image.png?to={to}", content=picture)) for to in "AB")
    assert a.shape == b.shape == (16, 16, 3) and not near(a, b)
    post = call.client.post
    assert "allowed: A, B" in refusal(post("/image.png", content=picture), 400)
    assert refusal(post("/image.png?to=C", content=picture), 400).startswith("to: ")


def test_pictures_are_limited(serve: Serve, upscaler: Generator) -> None:
    call = serve(upscaler)
    post = call.client.post
    assert "not an image" in refusal(post("/image.png", content=b"GIF"), 400)
    assert "empty file" in refusal(post("/image.png", content=b""), 400)
    bomb = png(1025, 1024, "1")  # a few kilobytes
    assert "1025x1024 pixels" in refusal(post("/image.png", content=bomb), 400)
    too_much = limits.PICTURE_BYTES + 1
    assert "more than 8 MiB" in refusal(post("/image.png", content=b"x" * too_much), 413)
    in_parts = (b"x" * (1 << 20) for _ in range(9))  # its length is not told beforehand
    assert "more than 8 MiB" in refusal(post("/image.png", content=in_parts), 413)

    end = threading.Event()
    call.state.batcher.run(end.wait)
    most = limits.PICTURES_IN_FLIGHT
    with ThreadPoolExecutor(most + 1) as pool:
        answers = [pool.submit(post, "/image.png", content=png(4, 4)) for _ in range(most + 1)]
        while not any(answer.done() for answer in answers):
            pass
        end.set()
        statuses = sorted(answer.result().status_code for answer in answers)
    assert statuses == [200] * most + [503]


# ---- who may come in ---------------------------------------------------------------------------


def test_only_names_of_this_machine_without_a_token(serve: Serve, styled: Generator) -> None:
    call = serve(styled)
    for name in ("127.0.0.1", "localhost:8000", "[::1]:8000", "LOCALHOST"):
        assert call("/health", headers={"Host": name}).status_code == 200
    for name in ("evil.example", "127.0.0.1.evil.example", "localhost.", ""):
        assert call("/model.json", headers={"Host": name}).status_code == 400


def test_a_token_is_asked_for(serve: Serve, styled: Generator) -> None:
    call = serve(styled, TOKEN)
    basic = base64.b64encode(f"anyone:{TOKEN}".encode()).decode()
    for known in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Basic {basic}"):
        headers = {"Authorization": known, "Host": "elsewhere.example"}
        assert call("/image.png", headers=headers).status_code == 200
    wrong = ("", f"Bearer {TOKEN}x", "Bearer", "Basic x", "Basic /w==", f"Basic {TOKEN}", TOKEN)
    for unknown in wrong:
        answer = call("/image.png", headers={"Authorization": unknown})
        assert "token" in refusal(answer, 401)
        assert answer.headers["www-authenticate"].startswith("Basic ")
    assert call("/static/gallery.js").status_code == 401
    assert call("/health").json()["images"] == 3


def test_a_client_has_so_many_requests_at_a_time(serve: Serve, styled: Generator) -> None:
    call = serve(styled)
    end, batcher = threading.Event(), call.state.batcher
    batcher.run(end.wait)
    most = limits.REQUESTS_OF_A_CLIENT
    with ThreadPoolExecutor(most) as pool:
        answers = [pool.submit(call, f"/image.png?seed={seed}") for seed in range(most)]
        while batcher.waiting < most:
            pass
        answer = call("/image.png")
        assert "at most 32 requests" in refusal(answer, 429)
        assert answer.headers["retry-after"] == "1"
        assert call("/health").json() == {
            "status": "ok",
            "waiting": most,
            "images": 0,
            "passes": 0,
        }
        end.set()
        assert all(answer.result().status_code == 200 for answer in answers)
    assert call("/image.png").status_code == 200


# ---- what is told ------------------------------------------------------------------------------


def test_the_model_is_told(serve: Serve, styled: Generator) -> None:
    scores = {"fd_efficientnet_lite0": 49.105, "fd_efficientnet_lite0_null": 3.4323, "x": 1.0}
    call = serve(
        styled,
        version=3,
        alias="champion",
        measure="fd_efficientnet_lite0",
        scores=scores | {"kid": float("nan")},
        command=("models:/tiny/3",),
        licence="CC0",
    )
    told = call("/model.json").json()
    assert told["scores"] == scores and told["classes"] == list(CLASSES)
    assert (told["name"], told["version"], told["alias"]) == ("tiny", 3, "champion")
    assert (told["family"], told["resolution"], told["style_layers"]) == ("stylegan", 8, 4)
    assert (told["licence"], told["command"]) == ("CC0", "models:/tiny/3")
    page = call("/").text
    assert "tiny version 3" in page and "Its Fréchet distance is 49.1 (real: 3.43)" in page
    assert call("/openapi.json").status_code == 200 and call("/docs").status_code == 404


def test_names_are_text_and_never_markup(serve: Serve, styled: Generator) -> None:
    call = serve(styled, name="<script>alert(1)</script>", licence='"><img src=x>')
    answer = call("/")
    assert "<script>alert" not in answer.text and "<img src=x" not in answer.text
    assert "<b onclick" not in answer.text and "&lt;b onclick=alert(1)&gt;" in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    # everything comes from this server, and nothing in the page is script or style itself
    assert not re.search(r"https?://|<style|<[^>]*\s(on\w+|style)=", answer.text)
    assert re.findall(r"<script[^>]*>(.*?)</script>", answer.text, re.DOTALL) == [""]
    for file in ("gallery.js", "gallery.css"):
        found = call(f"/static/{file}")
        assert found.status_code == 200 and "https://" not in found.text
        assert "innerHTML" not in found.text
