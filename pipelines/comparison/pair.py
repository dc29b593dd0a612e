"""Two versions side by side: gathers what differs between them, and lays it out as a page and as
text.

Scores, costs and the sentence on top are those of `facts.py` and `report.py`, with the versions in
the place of recipes. The page is `pair.html.j2`; it stands alone, and Jinja escapes all text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from gan_train.adversary import Task
from gan_train.config import Config
from gan_train.inference import Generator, read_description
from gan_train.metrics.protocol import Protocol, comparable
from gan_train.runs.checkpoint import harmless_keys
from gan_train.text import line, visible, without_passwords
from pipelines.comparison.facts import Entry, Facts, Scored, Section, sections
from pipelines.comparison.gather import parameter_counts
from pipelines.comparison.report import environment
from pipelines.comparison.shown import Shown, Version, shown
from pipelines.comparison.tables import Cell, Table, cost, quality
from pipelines.comparison.training_time import training_seconds
from pipelines.comparison.verdict import verdict
from pipelines.flows.progress import aligned
from pipelines.registry.dossier import Dossier
from pipelines.registry.promotion import sure_of

_DOES: dict[Task, str] = {
    "generate": "makes images of latents",
    "upscale": "upscales pictures",
    "translate": "translates pictures",
}
_VALUE_CHARS = 300
_CLASSES = 200
NOTHING = "–"


@dataclass(frozen=True)
class Difference:
    """A line of the page: what, and its value in either version."""

    what: str
    left: str
    right: str

    @property
    def differs(self) -> bool:
        """Whether the two values are not the same."""
        return self.left != self.right


@dataclass(frozen=True)
class Pair:
    """What is found of two versions, in the order in which they were named."""

    titles: tuple[str, str]
    verdict: str
    section: Section
    why_not: str | None
    """Why their scores must not be compared; None where they may be."""
    shown: Shown
    settings: tuple[Difference, ...]
    """The settings that differ and change what is trained."""
    other_settings: tuple[Difference, ...]
    """Those that differ and change nothing of it."""
    data: tuple[Difference, ...]
    code: tuple[Difference, ...]
    protocol: tuple[Difference, ...]
    """How the scores were measured."""
    models: str
    """The name of the model, or both names."""

    @property
    def summary(self) -> str:
        """What differs, in a sentence."""
        found = [f"{len(self.settings)} settings" if len(self.settings) != 1 else "1 setting"]
        found += [name for name, rows in (("data", self.data), ("code", self.code)) if _any(rows)]
        found = found if self.settings else found[1:]
        return f"What differs: {', '.join(found) or 'nothing that is recorded'}."


def _any(rows: Sequence[Difference]) -> bool:
    return any(row.differs for row in rows)


def pair(left: Dossier, right: Dossier, config: Config) -> Pair:
    """Compare two versions. `config` says where pictures are found that both are given
    (`shown.py`). Raises UserError where a generator or a picture cannot be read."""
    both = left, right
    generators = Generator.load(left.folder), Generator.load(right.folder)
    same_name = left.model == right.model
    titles = tuple(f"version {d.number}" if same_name else f"{d.model} {d.number}" for d in both)
    versions = [Version(d, g, t) for d, g, t in zip(both, generators, titles, strict=True)]
    entries = [_entry(version) for version in versions]
    found = sections(
        Facts(
            id="",
            budget="",
            data="",
            content_hash="",
            hardware="",
            finished="",
            counted=(),
            target=None,
            entries=tuple(entries),
        )
    )
    why_not = comparable(left.protocol, right.protocol)
    if len(found) > 1:
        does = [f"{v.title} {_DOES[v.generator.task]}" for v in versions]
        why_not = f"the two do different things, for {' and '.join(does)}"
    elif not (left.scores and right.scores):
        why_not = "not both were scored"
    # of the way to a score, a version knows its end alone
    section = replace(found[0], entries=tuple(entries), target=None)
    said = f"Scores cannot be compared: {why_not}."
    if why_not is None:
        older, newer = sorted(both, key=lambda d: (d.registered_ms, d.number))
        sure = sure_of(newer.standing, older.standing, newer.seeds)
        said = " ".join(filter(None, (verdict(found[0]), sure)))
    settings = _settings(left.settings, right.settings)
    harmless = harmless_keys(Config)
    idle = [d for d in settings if any(d.what == h or d.what.startswith(f"{h}.") for h in harmless)]
    return Pair(
        titles=(titles[0], titles[1]),
        verdict=said,
        section=section,
        why_not=why_not,
        shown=shown((versions[0], versions[1]), config),
        settings=tuple(d for d in settings if d not in idle),
        other_settings=tuple(idle),
        data=tuple(_data(both, generators)),
        code=tuple(_code(both)),
        protocol=tuple(_protocol(left.protocol, right.protocol)),
        models=" and ".join(dict.fromkeys(d.model for d in both)),
    )


def _entry(version: Version) -> Entry:
    """A version in the place of a recipe."""
    of, generator = version.dossier, version.generator
    described = read_description(of.folder)
    inside, others = parameter_counts(generator.adversary)
    ticks = [
        {"kind": "metrics", "nimg": nimg, "values": {"images_per_second": speed}}
        for nimg, speed in of.speeds
    ]
    seconds = training_seconds(ticks, of.images_seen)
    scored = Scored(kimg=of.images_seen / 1000, minutes=seconds / 60, scores=dict(of.scores))
    return Entry(
        recipe=version.title,
        family=generator.family,
        task=generator.task,
        run=of.run,
        workers=int(of.settings.get("cluster.workers", 1)),
        batch=described["batch"],
        generator_parameters=inside,
        other_parameters=others,
        kimg=of.images_seen / 1000,
        minutes=seconds / 60,
        memory_gib=of.memory_gib,
        checkpoints=(scored,) if of.scores else (),
        protocol=of.protocol,
    )


def _settings(left: Mapping[str, str], right: Mapping[str, str]) -> list[Difference]:
    """The settings whose values differ, by name."""
    keys = sorted(k for k in left.keys() | right.keys() if left.get(k) != right.get(k))
    return [Difference(_plain(k), _value(left.get(k)), _value(right.get(k))) for k in keys]


def _value(text: str | None) -> str:
    return NOTHING if text is None else _plain(text) or "none"


def _plain(text: str) -> str:
    """Untrusted text in one line, without passwords."""
    shown = line(without_passwords(text))
    return shown if len(shown) <= _VALUE_CHARS else f"{shown[:_VALUE_CHARS]}…"


def _data(both: Sequence[Dossier], generators: Sequence[Generator]) -> list[Difference]:
    """What is known of the data sets, and the classes whose counts differ."""

    def row(what: str, values: Sequence[str | None]) -> Difference:
        return Difference(what, *(_value(v or None) for v in values))

    rows = [
        row("content hash", [d.data_hash[:16] for d in both]),
        row("images", [None if d.samples is None else f"{d.samples:,}" for d in both]),
        row("classes", [f"{len(g.shape.classes):,}" for g in generators]),
    ]
    a, b = (
        {name: d.class_counts.get(name) for name in dict.fromkeys([*g.shape.classes])}
        for d, g in zip(both, generators, strict=True)
    )
    unequal = [name for name in dict.fromkeys([*a, *b]) if _count(a, name) != _count(b, name)]
    for name in unequal[:_CLASSES]:
        rows.append(row(f"class {_plain(name)}", [_count(a, name), _count(b, name)]))
    if len(unequal) > _CLASSES:
        rows.append(row("more classes that differ", [f"{len(unequal) - _CLASSES:,}", None]))
    return rows


def _count(counts: Mapping[str, int | None], name: str) -> str | None:
    if name not in counts:
        return None
    count = counts[name]
    return "there, not counted" if count is None else f"{count:,} images"


def _protocol(left: Protocol, right: Protocol) -> list[Difference]:
    return [
        Difference(_plain(key), *(_value(str(p[key]) if key in p else None) for p in (left, right)))
        for key in dict.fromkeys([*left, *right])
    ]


def _code(both: Sequence[Dossier]) -> list[Difference]:
    commits = [d.commit[:12] + (" and changes" if d.dirty else "") for d in both]
    return [
        Difference("commit", *(_value(c or None) for c in commits)),
        Difference("gan-train", *(_value(d.library or None) for d in both)),
        Difference("device", *(_value(d.device or None) for d in both)),
    ]


def _tables(found: Pair) -> tuple[Table, Table]:
    """The tables of scores and costs. Where scores must not be compared, none of them is marked as
    the best."""
    table = quality(found.section)
    if found.why_not is not None:
        rows = [(e, tuple(Cell(cell.text) for cell in cells)) for e, cells in table.rows]
        table = replace(table, rows=tuple(rows))
    return table, cost(found.section)


# ---- pages -------------------------------------------------------------------------------------


def page(found: Pair) -> str:
    """The page as one HTML document."""
    template = environment().get_template("pair.html.j2")
    quality_table, cost_table = _tables(found)
    return template.render(
        pair=found,
        quality_table=quality_table,
        cost_table=cost_table,
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


def text(found: Pair) -> str:
    """The answer for a terminal: the sentence on top, the scores, and what differs."""
    lines = [line(found.verdict), ""]
    table = _tables(found)[0]
    rows = [["", *(head for head, _ in table.heads)]]
    rows += [[entry.recipe, *(cell.text for cell in cells)] for entry, cells in table.rows]
    lines += [visible(aligned(rows)), "", found.summary] if table.heads else [found.summary]
    lines += [f"  {d.what}: {d.left} -> {d.right}" for d in found.settings]
    lines += [f"  {d.what}: {d.left} -> {d.right}" for d in (*found.data, *found.code) if d.differs]
    return "\n".join(lines)
