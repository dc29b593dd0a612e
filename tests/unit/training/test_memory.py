"""Freed memory stays with the process. In a process of its own: the setting is the process's."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

from gan_train.training.memory import keep_freed_memory

PROGRAM = """
import resource, sys
if "keep" in sys.argv:
    from gan_train.training.memory import keep_freed_memory
    assert keep_freed_memory()

def allocate():
    blocks = [bytearray(12 << 20) for _ in range(4)]  # touched: their pages are real

for _ in range(3):
    allocate()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    allocate()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_what_was_freed_is_used_again_without_new_pages() -> None:
    def faults(*arguments: str) -> int:
        command = [sys.executable, "-c", PROGRAM, *arguments]
        root = Path(__file__).parents[3]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
        return int(done.stdout)

    if platform.libc_ver()[0] == "glibc":
        assert faults("keep") < 1000 < faults()
    else:
        assert not keep_freed_memory()
