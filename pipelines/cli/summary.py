"""The text at the end of a run: samples, scores, the registered version, how to view them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gan_train.adversary import ImageShape, task_of
from gan_train.config import Config
from gan_train.metrics.scores import number, scores_of
from gan_train.runs import run_folder
from pipelines.flows.progress import aligned
from pipelines.stack import discovery

if TYPE_CHECKING:
    from pipelines.registry.versions import Registration

_COLUMNS = 8  # checkpoints in the summary's table

Row = dict[str, Any]


def table(rows: Sequence[Row]) -> str:
    """Scores as text: a line for each measure and a column for each checkpoint, each value with its
    standard error over samples. The last column is
    the reference: the score of real images (for a distance the null value, half of them against the
    other half), or that of a method without a network (bicubic upsampling, untouched images)."""
    scores = [scores_of({k: v for k, v in row.items() if k not in _PLACE}, {}) for row in rows]
    words = {s.reference_word for row in scores for s in row.values() if s.reference is not None}
    lines = [["", *(_place(row) for row in rows), " or ".join(sorted(words)) or "real"]]
    for name in dict.fromkeys(name for row in scores for name in row):
        values = [row[name].text if name in row else "-" for row in scores]
        newest = [row[name] for row in scores if name in row][-1]
        lines.append([name, *values, _cell(newest.reference)])
    return aligned(lines)


_PLACE = ("kimg", "resolution", "alpha", "checkpoint")


def _place(row: Row) -> str:
    """A checkpoint in few characters: `108k@32px`."""
    if "kimg" not in row:
        return str(row.get("checkpoint", ""))
    return f"{row['kimg']:.4g}k" + (f"@{row['resolution']:.0f}px" if "resolution" in row else "")


def _cell(value: float | None) -> str:
    return "-" if value is None else number(value)


def run_summary(config: Config, run_dir: Path, registration: Registration) -> str:
    """The last lines that `gan-train run` prints."""
    grid, trace = run_folder.newest_grid(run_dir), run_folder.newest_trace(run_dir)
    rows = run_folder.score_table(run_dir)
    more = [f"(the last {_COLUMNS} of {len(rows)}; all: gan-train evaluate {_near(run_dir)})"]
    return "\n".join(
        [
            "",
            table(rows[-_COLUMNS:]),
            *(more if len(rows) > _COLUMNS else []),
            "",
            f"samples     {_near(grid) if grid else 'none'}",
            *([f"profile     {_near(trace)}, for ui.perfetto.dev"] if trace else []),
            f"run         {_near(run_dir)}",
            f"score       {registration.metric} {registration.text}",
            f"registered  {registration.model} version {registration.version}, "
            f"{registration.alias}: {registration.reason}",
            f"images      {_command(config, run_dir, registration.version)}",
            *uis(config, registration.ui),
        ]
    )


def _command(config: Config, run_dir: Path, version: int) -> str:
    """The command that makes images with the registered version."""
    # neither colours nor classes matter for this; a schedule may end at this resolution
    shape = ImageShape(3, config.data.resolution, ("a", "b"))
    task = task_of(config.family.build(shape, config.train.batch))
    model = f"{_near(run_dir)} --version {version}"
    return {
        "generate": f"gan-train generate {model} --seeds 0-63 --out grid.png",
        "upscale": f"gan-train upscale PICTURE... --model {model}",
        "translate": f"gan-train translate PICTURE... --to B --model {model}",
    }[task]


def _near(path: Path) -> str:
    """The shortest way to type the path from the present folder."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def uis(config: Config, mlflow_page: str) -> list[str]:
    """Lines that say how to open the UIs of MLflow and Prefect."""
    home = config.workspace / "prefect"
    there = config.flow.server or discovery.prefect_page(config)
    prefect = there or f"PREFECT_HOME={home} prefect server start"
    return [f"MLflow      {mlflow_page}", f"Prefect     {prefect}"]
