"""`python -m iclora_train.adapters check|convert|merge|extract|combine|card|workflow` (`--help` after each)."""

from __future__ import annotations

if __name__ == "__main__":
    from iclora_train.commands import protect_imports

    protect_imports()

import argparse
from typing import NoReturn

from iclora_train.config.endings import one_line_ending
from iclora_train.config.paths import user_path

_BASE = "file or folder of the base model, or nano"
_ADAPTER = "adapter file and strength; repeat for several adapters"


class _Parser(argparse.ArgumentParser):
    """Prints an error as one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = _Parser("python -m iclora_train.adapters", description="Work on adapter files.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _convert(
        commands.add_parser("convert", help="convert to the format that ComfyUI, ltx-pipelines and diffusers load")
    )
    check = commands.add_parser("check", help="list all problems of adapter files; exit code 2 if there are any")
    check.add_argument("files", type=user_path, nargs="+", metavar="FILE")
    check.add_argument("--base", help=_BASE)
    merge = commands.add_parser("merge", help="write a base model with adapters added into its weights")
    merge.add_argument("base", help=_BASE)
    _adapters(merge)
    merge.add_argument("out", type=user_path)
    _extract(commands.add_parser("extract", help="write the adapter between a base and a changed copy of it"))
    combine = commands.add_parser("combine", help="write one adapter that equals the weighted sum of several")
    _adapters(combine)
    combine.add_argument("--rank", type=int, help="recompress to this rank; the default is exact")
    _dtype(combine)
    combine.add_argument("out", type=user_path)
    card = commands.add_parser("card", help="write the model card and the ComfyUI workflow into the adapter's folder")
    card.add_argument("file", type=user_path)
    card.add_argument("--scores", type=user_path, help="scores.json of `python -m eval`")
    workflow = commands.add_parser("workflow", help="write the ComfyUI workflow into the adapter's folder")
    workflow.add_argument("file", type=user_path)
    workflow.add_argument("--size", help="width x height x frames, e.g. 960x544x121; by default the adapter's own")
    workflow.add_argument("--fps", type=float, help="frames per second; by default the reference clip's")
    return top


def _convert(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", type=user_path)
    command.add_argument("out", type=user_path)
    command.add_argument("--base", help=_BASE)
    command.add_argument("--rank", type=int, help="for a LoKr or a DoRA: rank of the LoRA that is made of it")
    command.add_argument("--no-slots", action="store_true", help="leave out learned slots, as other programs do")
    _factors(command)
    _dtype(command)


def _extract(command: argparse.ArgumentParser) -> None:
    command.add_argument("base", help=_BASE)
    command.add_argument("merged", help="the merged or fine-tuned copy of the base")
    command.add_argument("out", type=user_path)
    command.add_argument("--rank", type=int, default=32)
    command.add_argument("--task", default="extracted", help="task name for the file's metadata")
    command.add_argument("--seed", type=int, default=0)
    _factors(command)
    _dtype(command)


def _adapters(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--adapter", nargs=2, action="append", required=True, metavar=("FILE", "STRENGTH"), help=_ADAPTER
    )


def _dtype(command: argparse.ArgumentParser) -> None:
    help = "dtype of the file; fp32 avoids rounding and takes twice the room"
    command.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16", help=help)


def _factors(command: argparse.ArgumentParser) -> None:
    command.add_argument("--downscale", type=int, help="factor by which the reference was smaller than the clip")
    command.add_argument("--temporal-scale", type=int, help="factor by which the reference had fewer frames per second")
    command.add_argument("--no-reference", action="store_true", help="for a plain LoRA, which takes no reference")


def main(arguments: list[str] | None = None) -> None:
    """Run one command. It ends as `one_line_ending` describes."""
    with one_line_ending("files that were not finished were not written"):
        args = parser().parse_args(arguments)
        from iclora_train.adapters import commands  # noqa: PLC0415 (imports torch; only after the arguments are parsed)

        code = getattr(commands, args.command)(args)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
