"""`python -m iclora_train.adapters check|convert|merge|extract|combine|card|workflow` (`--help` after each)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from iclora_train.config import ConfigError

_BASE = "file or folder of the base, or nano"
_ADAPTER = "file and strength, once for each adapter"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = _Parser("python -m iclora_train.adapters", description="Work on adapter files.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _convert(commands.add_parser("convert", help="write an adapter of any program as all three programs load it"))
    check = commands.add_parser("check", help="say all that is wrong with adapter files; exit code 2 if anything is")
    check.add_argument("files", type=Path, nargs="+", metavar="FILE")
    check.add_argument("--base", help=_BASE)
    merge = commands.add_parser("merge", help="write a base with adapters added into its weights")
    merge.add_argument("base", help=_BASE)
    _adapters(merge)
    merge.add_argument("out", type=Path)
    _extract(commands.add_parser("extract", help="write the adapter that lies between two bases"))
    combine = commands.add_parser("combine", help="write one adapter that does what several do")
    _adapters(combine)
    combine.add_argument("--rank", type=int, help="recompress to this rank; without it the result is exact")
    combine.add_argument("out", type=Path)
    card = commands.add_parser("card", help="write the model card and the ComfyUI workflow beside an adapter")
    card.add_argument("file", type=Path)
    card.add_argument("--scores", type=Path, help="scores.json of `python -m eval`")
    workflow = commands.add_parser("workflow", help="write the ComfyUI workflow beside an adapter")
    workflow.add_argument("file", type=Path)
    workflow.add_argument("--size", help="width x height x frames, e.g. 960x544x121; by default the adapter's own")
    workflow.add_argument("--fps", type=float, help="frames per second; by default the adapter's own")
    return top


def _convert(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("--base", help=_BASE)
    _factors(command)
    command.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16")


def _extract(command: argparse.ArgumentParser) -> None:
    command.add_argument("base", help=_BASE)
    command.add_argument("merged", help="likewise, with an adapter in it")
    command.add_argument("out", type=Path)
    command.add_argument("--rank", type=int, default=32)
    command.add_argument("--task", default="extracted", help="name to write into the file")
    command.add_argument("--seed", type=int, default=0)
    _factors(command)


def _adapters(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--adapter", nargs=2, action="append", required=True, metavar=("FILE", "STRENGTH"), help=_ADAPTER
    )


def _factors(command: argparse.ArgumentParser) -> None:
    command.add_argument("--downscale", type=int, help="how many times smaller than the clip the reference was")
    command.add_argument("--temporal-scale", type=int, help="how many times fewer frames per second it had")
    command.add_argument("--no-reference", action="store_true", help="a plain LoRA, which takes no reference")


def main(arguments: list[str] | None = None) -> None:
    """Run one command; a wrong file or setting is one line on stderr and exit code 2."""
    args = parser().parse_args(arguments)
    from iclora_train.adapters import commands  # noqa: PLC0415 (torch loads after the command line is known to be good)

    try:
        code = getattr(commands, args.command)(args)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    raise SystemExit(code)


if __name__ == "__main__":
    main()
