"""The same targets under atheris, whose mutations follow the lines that an input reaches.

    pip install atheris
    python -m tests.fuzz.guided pickles --seconds 300

It ends with status 0 after that time, or at the first finding, which it writes to the folder
build/fuzz. `runner.py` mutates blindly, needs no extra package, and repeats an input by its number.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
import tempfile
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[2]
TARGETS = ("archives", "index", "pickles", "pictures", "runs")
MEMORY_MB, TIMEOUT_S = 4096, 20


def main() -> None:
    """The command line. libFuzzer ends the process."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=300)
    given = parser.parse_args()
    with atheris.instrument_imports(include=["gan_train"], enable_loader_override=False):
        module = importlib.import_module(f"tests.fuzz.{given.target}")
    findings = ROOT / "build" / "fuzz"
    findings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        corpus, folder = Path(place, "corpus"), Path(place, "read")
        corpus.mkdir()
        folder.mkdir()
        for number, seed in enumerate(module.seeds()):
            (corpus / str(number)).write_bytes(seed)
        read = module.target(folder)

        def one(data: bytes) -> None:
            with contextlib.suppress(module.ALLOWED):  # what the reader promises
                read(data)

        limits = [f"-max_total_time={given.seconds}", f"-timeout={TIMEOUT_S}"]
        limits += [f"-rss_limit_mb={MEMORY_MB}", f"-artifact_prefix={findings}/"]
        atheris.Setup([sys.argv[0], *limits, "-max_len=20000", str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
