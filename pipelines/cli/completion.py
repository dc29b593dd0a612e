"""`gan-train completion`: what the Tab key offers in a shell.

argcomplete reads the same parsers that read the command line, and asks the functions here for the
names of recipes and runs. The shell calls gan-train at each Tab, so nothing heavy is imported.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gan_train.files import shipped
from pipelines.cli.arguments import add_command

SHELLS = ("bash", "zsh", "fish")
Completer = Callable[..., list[str]]


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
    CompletionFinder()(parser, always_complete_options=False, default_completer=FilesCompleter())


def _add_names(parser: argparse.ArgumentParser) -> None:
    """Tell argcomplete which arguments, of all commands, name recipes and runs."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _add_names(command)
        elif action.dest in ("recipe", "recipes"):
            action.completer = _recipes  # type: ignore[attr-defined]
        elif action.dest in ("run", "resume"):
            action.completer = _runs  # type: ignore[attr-defined]
        elif action.dest == "target":
            action.completer = _with_folders(_runs)  # type: ignore[attr-defined]
        elif action.dest == "model":
            action.completer = _with_folders(_names)  # type: ignore[attr-defined]


def _names(**_: Any) -> list[str]:
    return [path.stem for path in shipped.known()]


def _runs(**_: Any) -> list[str]:
    return sorted(path.parent.name for path in Path("runs/train").glob("*/config.yaml"))


def _recipes(prefix: str, **_: Any) -> list[str]:
    from argcomplete.completers import FilesCompleter

    return _names() + list(FilesCompleter((".yaml", ".yml"))(prefix))


def _with_folders(names: Completer) -> Completer:
    """Offers the folders beside what `names` offers."""
    from argcomplete.completers import DirectoriesCompleter

    return lambda prefix, **_: names() + list(DirectoriesCompleter()(prefix))
