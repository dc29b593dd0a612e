"""`gan-train completion`: what the Tab key offers in a shell.

argcomplete reads the same parsers that read the command line, and asks the functions here for the
names of recipes and runs. The shell calls gan-train at each Tab, so nothing heavy is imported.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from pipelines.cli.arguments import add_command

SHELLS = ("bash", "zsh", "fish")


def add(commands: Any) -> None:
    """Add the command to a parser's list."""
    command = add_command(
        commands,
        "completion",
        _completion,
        "print what makes the Tab key of a shell complete commands, options, recipes and runs",
        '  bash   in ~/.bashrc: eval "$(gan-train completion bash)"\n'
        '  zsh    in ~/.zshrc, after compinit: eval "$(gan-train completion zsh)"\n'
        "  fish   gan-train completion fish > ~/.config/fish/completions/gan-train.fish",
    )
    command.add_argument("shell", choices=SHELLS)


def _completion(given: argparse.Namespace) -> int:
    from argcomplete.shell_integration import shellcode

    print(shellcode(["gan-train"], shell=given.shell))
    return 0


def answer(parser: argparse.ArgumentParser) -> None:
    """Where a shell asks for completions, give them and end this process."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    from argcomplete.completers import FilesCompleter
    from argcomplete.finders import CompletionFinder

    _add_names(parser)
    CompletionFinder()(parser, default_completer=FilesCompleter())


def _add_names(parser: argparse.ArgumentParser) -> None:
    """Tell argcomplete which arguments, of all commands, name recipes and runs."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _add_names(command)
        elif action.dest in ("recipe", "recipes", "model"):
            action.completer = _recipes  # type: ignore[attr-defined]
        elif action.dest in ("resume", "run", "target"):
            action.completer = _runs  # type: ignore[attr-defined]


def _recipes(**_: Any) -> list[str]:
    from gan_train.recipes import SHIPPED

    return sorted(
        {path.stem for place in (SHIPPED, Path("configs")) for path in place.glob("*.yaml")}
    )


def _runs(**_: Any) -> list[str]:
    return sorted(path.parent.name for path in Path("runs/train").glob("*/config.yaml"))
