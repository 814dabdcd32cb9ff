"""`python -m eval.study A B`: which of two sets of clips do people prefer?

A and B are folders of clips with equal file names, or folders of evaluations. The command writes study.html and
study.key.json into --out. Give the page to people, not the key. Each of them saves a file of answers;
`python -m eval.study --out FOLDER --answers answers-*.json` reads them and prints the preference.
"""

from __future__ import annotations

if __name__ == "__main__":
    from iclora_train.commands import protect_imports

    protect_imports()

import argparse
import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console

from eval.study.agreement import agreement, recordings_of
from eval.study.page import write_study
from eval.study.pairs import StudyPair, clips_of, draw_pairs, read_sides
from eval.study.preference import CHECKS_TO_PASS, Answers, Preference, preference
from eval.study.references import references_of
from iclora_train.config import ConfigError, require
from iclora_train.config.endings import one_line_ending
from iclora_train.config.paths import user_path
from iclora_train.core.atomic_files import sha256, write_json
from iclora_train.core.console import make_console
from iclora_train.core.records import Text, read_json

PAGE, KEY, RESULT = "study.html", "study.key.json", "study.result.json"
QUESTION = "Which clip is better?"
MOST_BYTES = 200e6  # from this size on browsers are slow to open the page


@dataclass(frozen=True)
class Key:
    """What the page does not say: which side of each pair is whose."""

    study: Text
    a: Text
    b: Text
    question: Text
    pairs: list[StudyPair]
    recordings: dict[Text, Text] = field(default_factory=dict)  # of each clip; empty if they are not known


def make(a: Path, b: Path, out: Path, arguments: argparse.Namespace, console: Console) -> None:
    """Write the page and its key. ConfigError as in `clips_of` and `read_sides`."""
    require(not (out / KEY).exists(), f"{out / KEY} exists: set another --out, so that its answers can still be read")
    clips = clips_of(a), clips_of(b)
    names = sorted(clips[0].keys() & clips[1].keys())
    require(len(names) > 0, f"{a} and {b} have no clips of equal names")
    missing = sorted(clips[0].keys() ^ clips[1].keys())
    if missing:
        console.print(f"note: {len(missing)} clips are in one folder only and left out, e.g. {missing[0]}")
    count = min(len(names), arguments.pairs or len(names))
    checks = max(2, count // 8) if arguments.checks is None else arguments.checks
    pairs = draw_pairs(names, count, checks, arguments.seed)
    chosen = sorted({pair.name for pair in pairs})
    references = {} if arguments.references is None else references_of(arguments.references, chosen)
    if references and len(references) < len(chosen):
        missing = [name for name in chosen if name not in references]
        console.print(f"note: {len(missing)} clips have no reference in {arguments.references}, e.g. {missing[0]}")
    study = _identity(arguments.question, pairs, clips)
    sides = read_sides(pairs, *clips, references, arguments.height)
    size = write_study(out / PAGE, study, arguments.question, pairs, sides)
    recordings = recordings_of((a, b), chosen)
    write_json(out / KEY, asdict(Key(study, str(a), str(b), arguments.question, pairs, recordings)))
    console.print(f"{out / PAGE}: {len(pairs)} pairs, {checks} of them attention checks, {size / 1e6:.1f} MB")
    if size > MOST_BYTES:
        console.print("note: browsers open a page of this size slowly: set fewer --pairs, or a smaller --height")
    console.print(f"{out / KEY}: keep it, and do not give it to the people who answer")


def _identity(question: str, pairs: list[StudyPair], clips: tuple[dict[str, Path], dict[str, Path]]) -> str:
    """The id that links answers, and what a browser keeps of them, to these clips, sides and question only."""
    digest = hashlib.sha256(json.dumps([question, [asdict(pair) for pair in pairs]]).encode())
    for name in sorted({pair.name for pair in pairs}):
        for side in clips:
            digest.update(sha256(side[name]).encode())
    return digest.hexdigest()[:16]


def read(out: Path, files: list[Path], console: Console) -> None:
    """Print and write the preference of the answers in `files`."""
    require((out / KEY).exists(), f"{out / KEY} does not exist: give --out the folder of the study")
    key = read_json(out / KEY, Key, "copy it again from where the study was made")
    result = preference(key.pairs, _read_answers(files, key, out, console), recordings=key.recordings)
    if result is None:
        raise ConfigError(
            f"nobody compared clips and answered {CHECKS_TO_PASS:.0%} of the attention checks correctly: ask more "
            "people, and say that the clips must be watched"
        )
    for line in describe(result, key):
        console.print(line, highlight=False, soft_wrap=True)
    metrics = agreement(Path(key.a), Path(key.b), result)
    if metrics is not None:
        console.print(metrics["text"], highlight=False, soft_wrap=True)
    write_json(out / RESULT, {"a": key.a, "b": key.b, **asdict(result), "metrics": metrics})
    console.print(f"result  {out / RESULT}")


def _read_answers(files: list[Path], key: Key, out: Path, console: Console) -> list[Answers]:
    """The answers of all people. ConfigError for a damaged file, another study, and answers that are given twice."""
    people: dict[Path, Answers] = {}
    for file in files:
        require(file.is_file(), f"--answers: {file} does not exist")
        answers = read_json(file, Answers, "ask for the answers again")
        require(answers.study == key.study, f"{file} has answers to another study than {out / KEY}")
        twin = next((other for other, of_other in people.items() if of_other == answers), None)
        require(twin is None, f"--answers: {file} has the same answers as {twin}: give the file of each person once")
        people[file] = answers
    count = Counter(answers.rater for answers in people.values() if answers.rater)
    for rater, number in count.items():
        if number > 1:
            console.print(f"note: {number} files are of {rater}: they count as {number} people", highlight=False)
    return list(people.values())


def describe(result: Preference, key: Key) -> list[str]:
    """The preference in a few lines."""
    of = f"{len(result.clips)} clips"
    if key.recordings:
        of += f" of {result.recordings} recordings"
    interval = f"too few {'recordings' if key.recordings else 'clips'} for an interval"
    if result.low is not None and result.high is not None:
        interval = f"95 % interval {result.low:.0%} to {result.high:.0%}"
    lines = [
        f"A {key.a}",
        f"B {key.b}",
        f"B is preferred in {result.mean:.0%} ({interval}; p {result.p:.2g}) of {of} by {len(result.raters)} people",
    ]
    if not key.recordings:
        lines.append("the recordings of the clips are not known: each clip counts as a recording of its own")
    if result.left_out:
        lines.append(f"left out for failed attention checks, or without answers: {', '.join(result.left_out)}")
    return lines


def main() -> None:
    """`python -m eval.study`."""
    parser = argparse.ArgumentParser(prog="eval.study", description=(__doc__ or "").split(":", 1)[1].strip())
    parser.add_argument("folders", type=user_path, nargs="*", metavar="A B", help="clips, or evaluations")
    parser.add_argument("--out", type=user_path, default=Path("study"), metavar="FOLDER", help="default: study")
    parser.add_argument("--answers", type=user_path, nargs="+", metavar="FILE", help="read these answers")
    parser.add_argument(
        "--references",
        type=user_path,
        metavar="FOLDER",
        help="clips or pictures of equal names, or inputs of eval.handout, shown above",
    )
    parser.add_argument("--question", default=QUESTION, help=f"default: {QUESTION}")
    parser.add_argument("--pairs", type=int, metavar="N", help="number of clips; default: all")
    parser.add_argument(
        "--checks", type=int, metavar="N", help="attention checks; default: one for eight clips, at least 2"
    )
    parser.add_argument("--height", type=int, default=360, help="of a clip on the page, in pixels; default: 360")
    parser.add_argument("--seed", type=int, default=0, help="of the order and the sides")
    with one_line_ending("the same command starts again"):
        arguments = parser.parse_args()
        console = make_console()
        if arguments.answers is not None:
            return read(arguments.out, arguments.answers, console)
        require(len(arguments.folders) == 2, "give two folders, A and B, or --answers")
        for name, least in (("pairs", 1), ("checks", 0), ("height", 16), ("seed", 0)):
            value = getattr(arguments, name)
            require(value is None or value >= least, f"--{name}={value} must be at least {least}")
        a, b = arguments.folders
        return make(a, b, arguments.out, arguments, console)


if __name__ == "__main__":
    main()
