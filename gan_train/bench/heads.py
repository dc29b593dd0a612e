"""Measures what recipes cost for each thousand images, and writes it into their heads.

    python -m gan_train.bench.heads "one core of an EPYC (Zen 4)" configs/*.yaml

The first argument names the processor. A recipe is rehearsed without its data, in one process of
one thread, and its CPU seconds count, so that other work on the machine does no harm. Large stages
are estimated by counted operations. The line replaces the one from before, and stands above `name`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from gan_train import recipes
from gan_train.adversary import ImageShape
from gan_train.bench.counting import estimate
from gan_train.bench.rehearsal import rehearse
from gan_train.config import Config
from gan_train.training.schedule import schedule_end, stage_at

_CLASSES = 26  # of the glyphs; how many there are changes next to nothing
_LINE = re.compile(r"^# Costs .*\n", re.MULTILINE)


def cost(config: Config) -> tuple[float, bool] | None:
    """CPU seconds for a thousand images, the mean over the schedule, and whether all stages were
    measured; None where that is not known."""
    workers = config.cluster.workers
    config = recipes.change(config, {"cluster.gpu": "no", "train.threads": 1})
    classes = tuple(f"class{n}" for n in range(_CLASSES if config.data.classes == "folder" else 0))
    shape = ImageShape(1 if config.data.colour == "grey" else 3, config.data.resolution, classes)
    measured = rehearse(config, shape, workers, 1, threads=1).cpu_seconds
    each = measured | estimate(config, shape, measured, 1, "cpu")
    stages = config.family.build(shape, config.train.batch).stages()
    end, start, total = schedule_end(config, stages), 0, 0.0
    while start < end:
        stage, until = stage_at(stages, start, end)
        if stage.name not in each:
            return None
        total += each[stage.name] * (until - start)
        start = until
    return 1000 * total / end, len(measured) == len(stages)


def line(found: tuple[float, bool] | None, processor: str) -> str:
    """The line in the head of a recipe."""
    gpu = "no GPU has been measured"
    if found is None:
        return f"# Costs per kimg: not measured on a CPU; {gpu}.\n"
    seconds, measured = found
    about = "" if measured else "about "
    how = "" if measured else " (partly by counted operations)"
    return f"# Costs {about}{_rounded(seconds)} s per kimg on {processor}{how}; {gpu}.\n"


def write(path: Path, text: str) -> None:
    """Put the line above the recipe's name, in place of the one from before."""
    recipe = _LINE.sub("", path.read_text(encoding="utf-8"))
    name = re.search("^name: ", recipe, re.MULTILINE)
    assert name is not None, f"{path} is no recipe"
    head, rest = recipe[: name.start()], recipe[name.start() :]
    path.write_text(head + text + rest, encoding="utf-8")


def _rounded(seconds: float) -> str:
    """Two digits, as the speed of a machine drifts."""
    return f"{float(f'{seconds:.2g}'):,g}"


def main(arguments: list[str]) -> None:
    """The command: a processor's name, then the files of recipes."""
    processor, *paths = arguments
    for path in map(Path, paths):
        text = line(cost(recipes.load(str(path))), processor)
        write(path, text)
        print(f"{path.name}: {text}", end="", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
