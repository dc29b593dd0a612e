"""The report of a comparison: facts in, a page or Markdown out. Pure.

The page stands alone: style, charts and pictures are inside it, and there is no script, so it can
be mailed or kept. All text that comes from recipes or errors is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pipelines.comparison.charts import swatch
from pipelines.comparison.facts import (
    Cell,
    Entry,
    Facts,
    Over,
    Section,
    Table,
    chart,
    cost,
    duration,
    number,
    quality,
    sections,
)
from pipelines.comparison.measures import references

_TITLES = {
    "generate": "Images from latents",
    "upscale": "Super-resolution",
    "translate": "Translation",
}
_OVER: tuple[Over, ...] = ("minutes of training", "thousands of images seen")

_SHORT = {"minutes of training": "time", "thousands of images seen": "images seen"}

_STYLE = """\
:root{color-scheme:light dark;--paper:#f4f5f7;--card:#fff;--ink:#1c1f23;--soft:#5b6470;
--rule:#dfe3e8;--best:#e3f1ea;--bad:#a32020}
@media (prefers-color-scheme:dark){:root{--paper:#0f1215;--card:#171b20;--ink:#eceff3;
--soft:#a7b0bb;--rule:#343b45;--best:#17362a;--bad:#ff9a8f}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1160px;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:clamp(1.6rem,4.5vw,2.3rem);line-height:1.15;margin:.2rem 0 .6rem;
letter-spacing:-.015em;overflow-wrap:anywhere;text-wrap:balance}
h2{font-size:1.4rem;margin:3rem 0 .25rem}h3{font-size:1.05rem;margin:2rem 0 .6rem}
p{margin:.4rem 0;max-width:72ch}.small,figcaption,footer{color:var(--soft);font-size:.875rem}
.eyebrow{color:var(--soft);font-size:.8rem;letter-spacing:.09em;text-transform:uppercase;margin:0}
.lead{font-size:1.15rem;text-wrap:balance}
dl.about{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:.9rem 1.5rem;
margin:1.6rem 0 0;padding:1.1rem 1.25rem}
dt{color:var(--soft);font-size:.8rem}dd{margin:0;overflow-wrap:anywhere}
.card,dl.about{background:var(--card);border:1px solid var(--rule);border-radius:12px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.925rem}
th,td{padding:.55rem .6rem;text-align:right;border-top:1px solid var(--rule);white-space:nowrap}
thead th{border-top:0;color:var(--soft);font-weight:500;font-size:.8rem;vertical-align:bottom;
white-space:normal;min-width:4.9rem;line-height:1.25}
tbody th{text-align:left;font-weight:600;position:sticky;left:0;background:var(--card)}
thead th:first-child{text-align:left;position:sticky;left:0;background:var(--card)}
tbody th .family{display:block;font-weight:400;color:var(--soft);font-size:.8rem;
padding-left:1.25rem}
td.best{background:var(--best);font-weight:650}
td.failed{text-align:left;color:var(--bad);white-space:normal}td.failed>span{display:block;max-width:min(72ch,60vw)}
tr.reference th,tr.reference td{color:var(--soft);font-weight:400;font-style:italic}
.swatch{width:14px;height:14px;margin-right:.4rem;vertical-align:-1px;background:none}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:1rem}
.charts figure{margin:0;padding:.9rem .9rem .7rem}.charts .scroll>svg{min-width:430px;width:100%;
display:block}.charts figcaption{padding:0 .3rem .5rem;color:var(--ink);font-weight:600}
.samples{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:1rem}
.samples figure{margin:0;padding:.8rem;max-width:620px}
.samples img{display:block;width:100%;height:auto;border-radius:5px;background:#000;
image-rendering:pixelated}
.samples figcaption{padding-top:.6rem}.samples b{color:var(--ink)}
ul{padding-left:1.2rem;max-width:78ch}li{margin:.3rem 0}
details{margin-top:.8rem}summary{cursor:pointer;color:var(--soft)}
details>*:not(summary){margin-top:.6rem}
pre{overflow-x:auto;padding:1rem;margin:.6rem 0;font-size:.8rem;line-height:1.45}
footer{margin-top:3.5rem;border-top:1px solid var(--rule);padding-top:1rem}
@media print{body{background:#fff}.card{break-inside:avoid}}
"""


def page(facts: Facts) -> str:
    """The report as one HTML document."""
    arranged = sections(facts)
    names = [entry.recipe for entry in facts.entries]
    title = " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
    titled = len(arranged) > 1
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{escape(title)}: a comparison</title>",
            f"<style>{_STYLE}</style></head><body><main>",
            '<header><p class="eyebrow">gan-train compare</p>',
            f"<h1>{escape(title)}</h1>",
            *(f'<p class="lead">{escape(verdict(section))}</p>' for section in arranged),
            _about(facts),
            "</header>",
            *(_section(section, titled) for section in arranged),
            _method(facts),
            _settings(facts.entries),
            f"<footer>Comparison <code>{escape(facts.id)}</code>. The figures of this page lie "
            "beside it as JSON; in MLflow, its runs have the tag <code>compare</code>.</footer>",
            "</main></body></html>\n",
        ]
    )


def markdown(facts: Facts) -> str:
    """The main figures as Markdown tables."""
    lines = [f"**{_plain(facts.budget)}** for each recipe, on {_plain(facts.data)}."]
    for section in sections(facts):
        lines += ["", _plain(verdict(section))]
        for table in (quality(section), cost(section)):
            heads = ["recipe", *(head for head, _ in table.heads)]
            lines += ["", _line(heads), _line(["---", *["---:"] * len(table.heads)])]
            for entry, cells in table.rows:
                lines.append(_line([entry.recipe, *(c.text for c in cells)], best=cells))
            lines += [_line([name, *(c.text for c in cells)]) for name, cells in table.references]
        failed = [entry for entry in section.entries if entry.error]
        lines += [f"\n**{_plain(e.recipe)} failed**: {_plain(e.error or '')}" for e in failed]
    return "\n".join(lines) + "\n"


def text(facts: Facts) -> str:
    """Verdict and costs for a terminal."""
    lines = []
    for section in sections(facts):
        lines += ["", verdict(section), ""]
        table = cost(section)
        rows = [["", *(head for head, _ in table.heads)]]
        rows += [[e.recipe, *(cell.text for cell in cells)] for e, cells in table.rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            rest = map(str.rjust, row[1:], widths[1:])
            lines.append("  ".join([row[0].ljust(widths[0]), *rest]))
        lines += [f"{e.recipe}: {note}" for e in section.entries for note in e.notes]
    return "\n".join(lines)


def _line(texts: Sequence[str], best: Sequence[Cell] = ()) -> str:
    bold = [False, *(cell.best for cell in best)] if best else [False] * len(texts)
    shown = (f"**{_plain(t)}**" if b else _plain(t) for t, b in zip(texts, bold, strict=True))
    return f"| {' | '.join(shown)} |"


def _plain(text: str) -> str:
    """Text that neither ends a cell nor becomes HTML."""
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def verdict(section: Section) -> str:
    """Who came first, in a sentence."""
    scored = [e for e in section.entries if not e.error and section.main]
    if section.main is None or not scored:
        return "No recipe has a score to compare."
    name = section.main.name
    value = number(scored[0].scores[name])
    lower = {"lower": "lowest ", "higher": "highest "}[section.main.better or "lower"]
    said = f"{scored[0].recipe} has the {lower}{section.main.label}: {value}"
    others = [f"{e.recipe} {number(e.scores[name])}" for e in scored[1:] if name in e.scores]
    if others:
        said += f", before {', '.join(others)}"
    else:
        said = f"{scored[0].recipe} has the {section.main.label} {value}"
    for label, values in references(scored[0].scores).items():
        if name in values:
            said += f"; {label} {'get' if label.endswith('s') else 'gets'} {number(values[name])}"
    return f"{said}."


# ---- parts of the page -------------------------------------------------------------------------


def _about(facts: Facts) -> str:
    protocol = next((entry.protocol for entry in facts.entries if entry.protocol), {})
    scores = f"N = {protocol.get('images', '–')}, {protocol.get('extractor', '')}"
    shown = {
        "Budget of each recipe": facts.budget,
        "Data": facts.data,
        "Scores": scores.rstrip(", "),
        "Hardware": facts.hardware,
        "Finished": facts.finished,
    }
    parts = (f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in shown.items())
    return f'<dl class="about">{"".join(parts)}</dl>'


def _section(section: Section, titled: bool) -> str:
    level = "h3" if titled else "h2"
    parts = [f"<h2>{_TITLES[section.task]}</h2>"] if titled else []
    parts += [f"<{level}>Scores</{level}>", _table(quality(section), failures=True)]
    parts.append(_meanings(quality(section)))
    charts = [(over, svg) for over in _OVER if (svg := chart(section, over))]
    if charts:
        assert section.main is not None
        way = {"lower": "lower is better", "higher": "higher is better"}
        head = f"{section.main.label} over {{}}, {way[section.main.better or 'lower']}"
        figures = (
            f'<figure class="card"><figcaption>{escape(head.format(_SHORT[over]))}</figcaption>'
            f'<div class="scroll">{svg}</div></figure>'
            for over, svg in charts
        )
        parts += [f"<{level}>On the way</{level}>", f'<div class="charts">{"".join(figures)}</div>']
        parts.append(_figures(section))
    pictures = [entry for entry in section.entries if entry.picture]
    if pictures:
        parts.append(f"<{level}>Samples</{level}>")
        parts.append(f'<div class="samples">{"".join(map(_picture, pictures))}</div>')
    parts += [f"<{level}>What it took</{level}>", _table(cost(section))]
    notes = [
        f"<li><b>{escape(entry.recipe)}</b>: {escape(note)}</li>"
        for entry in section.entries
        for note in entry.notes
    ]
    if notes:
        parts += [f"<{level}>To be kept in mind</{level}>", f"<ul>{''.join(notes)}</ul>"]
    return f"<section>{''.join(parts)}</section>"


def _table(table: Table, failures: bool = False) -> str:
    """A row for each entry; with `failures` the message takes the place of a failed one's cells."""
    heads = "".join(
        f'<th scope="col" title="{escape(meaning)}">{escape(head)}</th>'
        for head, meaning in table.heads
    )
    rows = []
    for place, (entry, cells) in enumerate(table.rows):
        name = (
            f'<th scope="row">{swatch(place)}{escape(entry.recipe)}'
            f'<span class="family">{escape(entry.family)}</span></th>'
        )
        values = _cells(cells)
        if failures and entry.error:
            span = max(1, len(cells))
            message = f"<span>Failed: {escape(entry.error)}</span>"
            values = f'<td class="failed" colspan="{span}">{message}</td>'
        rows.append(f"<tr>{name}{values}</tr>")
    for label, cells in table.references:
        rows.append(
            f'<tr class="reference"><th scope="row">{escape(label)}</th>{_cells(cells)}</tr>'
        )
    return (
        f'<div class="card scroll" tabindex="0" role="region" aria-label="Table"><table><thead><tr>'
        f'<th scope="col">Recipe</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        "</div>"
    )


def _meanings(table: Table) -> str:
    """What the columns say."""
    items = "".join(
        f"<li><b>{escape(head)}</b>: {escape(meaning)}</li>"
        for head, meaning in table.heads
        if meaning
    )
    if not items:
        return ""
    return (
        "<details><summary>What the columns say</summary><ul>"
        "<li>All are of the last checkpoint. The best of a column is set off where a way is better."
        f"</li>{items}</ul></details>"
    )


def _cells(cells: Sequence[Cell]) -> str:
    return "".join(
        f'<td class="best">{escape(cell.text)}</td>'
        if cell.best
        else f"<td>{escape(cell.text)}</td>"
        for cell in cells
    )


def _figures(section: Section) -> str:
    """The charts as a table, for those who cannot see them or want the figures."""
    assert section.main is not None
    rows = "".join(
        f'<tr><th scope="row">{escape(entry.recipe)}</th><td>{number(point.kimg)} k</td>'
        f"<td>{duration(point.minutes)}</td><td>{number(point.scores[section.main.name])}</td></tr>"
        for entry in section.entries
        for point in entry.checkpoints
        if section.main.name in point.scores
    )
    heads = "".join(
        f'<th scope="col">{head}</th>'
        for head in ("Recipe", "Images seen", "Training", escape(section.main.label))
    )
    return (
        "<details><summary>The figures of the charts</summary>"
        f'<div class="card scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>'
        "</table></div></details>"
    )


def _picture(entry: Entry) -> str:
    picture = entry.picture
    assert picture is not None
    alt = escape(f"{picture.text}, {entry.recipe}")
    return (
        f'<figure class="card"><img src="data:image/png;base64,{escape(picture.png)}" alt="{alt}" '
        f'width="{picture.width}" height="{picture.height}"><figcaption>'
        f"<b>{escape(entry.recipe)}</b> · {escape(picture.text)}</figcaption></figure>"
    )


def _method(facts: Facts) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in facts.counted)
    tasks = {entry.task: entry.protocol for entry in facts.entries if entry.protocol}
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(str(value))}</td></tr>'
        for protocol in tasks.values()
        for key, value in protocol.items()
    )
    protocol = (
        "<details><summary>The protocol of the scores</summary>"
        f'<div class="card scroll"><table><tbody>{rows}</tbody></table></div></details>'
    )
    return (
        f"<section><h2>How it was measured</h2><ul>{items}</ul>{protocol if rows else ''}</section>"
    )


def _settings(entries: Sequence[Entry]) -> str:
    parts = (
        f"<details><summary>{escape(entry.recipe)} · run {escape(entry.run)}</summary>"
        f'<pre class="card">{escape(entry.settings)}</pre></details>'
        for entry in entries
    )
    return f"<section><h2>Settings</h2>{''.join(parts)}</section>"
