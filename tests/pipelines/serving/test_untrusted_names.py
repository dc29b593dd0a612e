"""Names of classes, files and recipes that try to be markup, wherever they are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pydantic import ValidationError

from gan_train import recipes
from gan_train.adversary import ImageShape
from gan_train.config import Config
from gan_train.errors import UserError
from pipelines.cli.main import main
from pipelines.comparison import report
from pipelines.flows.nightly import _class_table
from pipelines.registry.lineage import lineage
from pipelines.registry.model_card import LIMIT, model_card
from tests.browser import opened
from tests.pipelines.comparison.test_report import about, entry
from tests.pipelines.registry.test_promotion import facts
from tests.pipelines.registry_runs import METRIC, config, index
from tests.pipelines.serving.conftest import Serve, untrained
from tests.training import stylegan
from tests.unit.test_text import HOSTILE

RUNS = "document.title='OWNED'"
NAMES = (
    *HOSTILE,
    f'<img src=x onerror="{RUNS}">',
    f"<script>{RUNS}</script>",
    f'"><svg onload={RUNS}>',
    f"[a](javascript:{RUNS}) ![b](x)",
)
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def tokens(text: str) -> list[Token]:
    """What a renderer makes of Markdown, the parts of its lines included."""
    return [t for block in MARKDOWN.parse(text) for t in (block, *(block.children or ()))]


def markup(text: str) -> list[str]:
    """The kinds of tokens in Markdown that a name must not make, and the targets of its links."""
    kinds = {"html_inline", "html_block", "image", "s_open", "hr"}
    found = [t.type for t in tokens(text) if t.type in kinds]
    return found + [str(t.attrs["href"]) for t in tokens(text) if t.type == "link_open"]


def card(folder: Path, name: str) -> str:
    data = index().model_copy(update={"classes": (name, "A", "B")})
    settings = config(folder)  # changed without its checks, which refuse some of the names
    named = {"source": f"pictures/{name}", "licence": name}
    settings = settings.model_copy(update={"data": settings.data.model_copy(update=named)})
    told = lineage(settings, "1", "run7", name, {"ray.job_id": name})
    scores: dict[str, Any] = {METRIC: 1.0, f"psnr_{name}": 2.0}
    protocol = {"reference": name, "images": 8}
    return model_card(
        settings, data, facts(picture=None, lineage=told, scores=scores, protocol=protocol)
    )


@pytest.mark.parametrize("name", NAMES)
def test_names_are_no_markdown(name: str, tmp_path: Path) -> None:
    text = card(tmp_path, name)
    assert len(text) <= LIMIT
    assert not any(link for link in markup(text) if not link.startswith("#/experiments/1"))
    assert sum(t.type == "tr_open" for t in tokens(text)) == 3
    compared = report.markdown(
        about(entry(name, [1.0]), entry("b", [], error=name), budget=name, data=name)
    )
    earlier = index().model_copy(update={"classes": (name, "A", "B"), "class_counts": (1, 100, 1)})
    changed = "\n".join(
        _class_table(earlier.model_copy(update={"class_counts": (2, 1, 2)}), earlier)
    )
    assert markup(compared) == markup(changed) == []
    assert sum(t.type == "tr_open" for t in tokens(changed)) == 4
    for shown in (text, compared, changed, report.text(about(entry(name, [1.0])))):
        assert all(c.isprintable() or c == "\n" for c in shown)


def test_a_card_of_hostile_names_fits(tmp_path: Path) -> None:
    assert len(card(tmp_path, "<" * 5000)) <= LIMIT


@pytest.mark.slow
@pytest.mark.browser
def test_no_name_runs_in_a_browser(serve: Serve, tmp_path: Path) -> None:
    names = [name.encode("utf-8", "replace").decode() for name in NAMES]
    entries = [entry(name, [1.0]) for name in names[-4:]]  # the charts have fonts for these
    entries += [entry("a", [], error=n, family=n, settings=n, notes=(n,)) for n in names]
    page = report.page(about(*entries, budget=names[-4], data=names[-3]))
    cards = "".join(MARKDOWN.render(card(tmp_path, name)) for name in names)
    file = tmp_path / "page.html"
    file.write_text(page.replace("</main>", f"{cards}</main>"), encoding="utf-8")
    shape = ImageShape(3, 8, tuple(names))
    gallery = serve(untrained(stylegan(2), shape), name=names[-4], licence=names[-3])
    for address in (file.as_uri(), str(gallery.client.base_url)):
        found = opened(address, tmp_path / "browser")
        assert "OWNED" in found and "<title>OWNED" not in found, "the names are there, as text"
    file.write_text(f"<!doctype html><p>{NAMES[-4]}", encoding="utf-8")
    assert "<title>OWNED" in opened(file.as_uri(), tmp_path / "browser"), (
        "this is how it would look"
    )


def test_no_name_reaches_the_terminal_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", f"{tmp_path}/\x1b[2J\u202e.yaml"]) == 2
    said = capsys.readouterr().err
    assert r"\x1b[2J\u202e.yaml" in said and "\x1b" not in said


def test_a_configuration_holds_no_password(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"registry\.tracking_uri=.*\*\*\*@db.*MLFLOW_") as told:
        recipes.change(
            config(tmp_path), {"registry.tracking_uri": "postgresql://gan:s3cret@db/mlflow"}
        )
    assert "s3cret" not in str(told.value)
    tree = config(tmp_path).model_dump(mode="json")
    tree["registry"]["tracking_uri"] = "postgresql://gan:s3cret@db/mlflow"
    with pytest.raises(ValidationError) as shown:  # as Prefect does, which keeps the text
        Config.model_validate(tree)
    assert "s3cret" not in str(shown.value)
