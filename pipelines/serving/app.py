"""The addresses of the server: pictures, the gallery page, what the model is, and its health."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles
from torch import Tensor

from gan_train.data.images import BadImage, open_picture
from gan_train.errors import UserError
from gan_train.images.grid import visible_grid
from gan_train.images.origin import Origin, encoded
from gan_train.images.pixels import to_picture
from gan_train.inference import conversion
from gan_train.sampling.wishes import Wish
from gan_train.text import html_templates
from pipelines.serving import limits, requests
from pipelines.serving.about import About
from pipelines.serving.batcher import Batcher
from pipelines.serving.door import LOCAL_NAMES, Door

_HERE = Path(__file__).parent
_POST_ONE = "{} takes pictures: send one to /image.png as the body of a POST"


def application(about: About, token: str | None = None) -> FastAPI:
    """The server of a generator. With a token it lets in only who knows it; without, only who calls
    it by a name of this machine."""
    generator = about.generator
    batcher = Batcher(generator)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        batcher.close()

    app = FastAPI(
        title=about.title,
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere; /openapi.json says the same
        redoc_url=None,
    )
    app.state.batcher = batcher
    app.add_middleware(Door, token=token)
    if token is None:
        names = [*LOCAL_NAMES, "[::1]"]  # a Host header has brackets around such addresses
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)
    _tell_errors(app)
    _add_pages(app, about, batcher)
    if generator.task == "generate":
        _add_drawings(app, batcher, about)
    else:
        _add_conversions(app, batcher)
    return app


def _tell_errors(app: FastAPI) -> None:
    """Every error is JSON, with one sentence under `error`."""

    @app.exception_handler(UserError)
    async def user_error(_: Request, error: UserError) -> JSONResponse:
        # messages name the options of the command line, which have the same names
        return JSONResponse({"error": str(error).removeprefix("--")}, 400)

    @app.exception_handler(RequestValidationError)
    async def validation(_: Request, error: RequestValidationError) -> JSONResponse:
        found = [f"{e['loc'][-1]}: {e['msg']}" for e in error.errors()]
        return JSONResponse({"error": "; ".join(found)}, 400)

    @app.exception_handler(limits.Refused)
    async def refused(_: Request, error: limits.Refused) -> JSONResponse:
        wait = {"Retry-After": "1"} if error.status == 503 else None
        return JSONResponse({"error": str(error)}, error.status, wait)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _add_pages(app: FastAPI, about: About, batcher: Batcher) -> None:
    environment = html_templates(_HERE)
    page = environment.get_template("gallery.html.j2").render(about=about, facts=about.facts())
    app.mount("/static", StaticFiles(directory=_HERE / "static"))

    @app.get("/", response_class=HTMLResponse)
    async def gallery() -> HTMLResponse:
        """The gallery page."""
        return HTMLResponse(page, headers={"Cache-Control": "no-cache"})

    @app.get("/model.json")
    async def model() -> dict[str, Any]:
        """What the model is, what it can be asked for, and how it was scored."""
        return about.facts()

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """`ok`, and how much there was to do."""
        done = {"images": batcher.images, "passes": batcher.passes}
        return {"status": "ok", "waiting": batcher.waiting, **done}


def _add_drawings(app: FastAPI, batcher: Batcher, about: About) -> None:
    generator, room = batcher.generator, limits.pixels()
    side = generator.shape.resolution

    async def drawn(
        request: Request, wishes: list[Wish], origin: Origin, columns: int | None = None
    ) -> Response:
        """The picture of the wishes, or word that the client has it already."""
        what = repr((about.weights, wishes, columns)).encode()
        # weak: the same request may differ in the last bit of a pixel, by what else is drawn
        tag = f'W/"{hashlib.sha256(what).hexdigest()[:32]}"'
        # another model may stand at the same address tomorrow: a browser asks before it reuses
        headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
        if tag in (known.strip() for known in request.headers.get("if-none-match", "").split(",")):
            return Response(status_code=304, headers=headers)
        with room.taken(len(wishes) * side**2):
            images = await asyncio.gather(*map(asyncio.wrap_future, batcher.draw(wishes)))
            png = await run_in_threadpool(_png, images, columns, origin)
        return Response(png, media_type="image/png", headers=headers)

    @app.get("/image.png", response_class=Response)
    async def image(request: Request, query: Annotated[requests.One, Query()]) -> Response:
        """One image, such as /image.png?seed=3&class=A&truncation=0.7."""
        wishes = query.wishes(generator)
        return await drawn(request, wishes, query.origin(generator, seeds=str(query.seed)))

    @app.get("/grid.png", response_class=Response)
    async def grid(request: Request, query: Annotated[requests.Grid, Query()]) -> Response:
        """A grid of images, such as /grid.png?seeds=0-15&columns=4."""
        wishes = query.wishes(generator)
        square = -int(-(len(wishes) ** 0.5) // 1)
        columns = min(query.columns or square, len(wishes))
        origin = query.origin(generator, seeds=query.seeds, columns=columns)
        return await drawn(request, wishes, origin, columns)

    @app.get("/mix.png", response_class=Response)
    async def mix(request: Request, query: Annotated[requests.Mix, Query()]) -> Response:
        """An image with the styles of another, such as /mix.png?seed=1&with=2&layers=0-3."""
        wishes = query.wishes(generator)
        origin = query.origin(
            generator, "mix", seeds=str(query.seed), others=str(query.other), layers=query.layers
        )
        return await drawn(request, wishes, origin)


def _add_conversions(app: FastAPI, batcher: Batcher) -> None:
    generator, room = batcher.generator, limits.pictures()

    def convert(body: bytes, to: str | None) -> bytes:
        try:
            picture = open_picture(body, generator.shape.channels, max_pixels=limits.PICTURE_PIXELS)
        except BadImage as error:
            raise UserError(f"no picture that can be used: {error}") from error
        return _png([generator.converted(picture, to)], None, conversion(generator, body, to))

    @app.post("/image.png", response_class=Response)
    async def image(request: Request, query: Annotated[requests.Converted, Query()]) -> Response:
        """A picture file is the body; a PNG is the answer. `to` (A or B) is for translation."""
        with room.taken(1):
            body = await limits.body_of(request)
            png = await asyncio.wrap_future(batcher.run(lambda: convert(body, query.to)))
        return Response(png, media_type="image/png", headers={"Cache-Control": "no-store"})

    @app.get("/image.png", include_in_schema=False)
    @app.get("/grid.png", include_in_schema=False)
    @app.get("/mix.png", include_in_schema=False)
    async def draw() -> Response:
        raise UserError(_POST_ONE.format(generator.family))


def _png(images: Sequence[Tensor], columns: int | None, origin: Origin) -> bytes:
    """A PNG file of one image uint8 [C, H, W], or of a grid of images."""
    picture: Image.Image
    if columns is None:
        (image,) = images
        picture = to_picture(image)
    else:
        picture = visible_grid(torch.stack(list(images)), columns)
    return encoded(picture, origin)
