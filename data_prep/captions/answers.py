"""Answers of a captioner: cleaned, and what is wrong with them. A wrong answer is asked again."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from data_prep.captions.instructions import forbidden_phrases
from data_prep.checks.captions import find_phrases
from iclora_train.config import Config

REFUSAL = re.compile(
    r"^(i'?m sorry|i am sorry|sorry\b|apologies|unfortunately)|^no (image|picture|video|frame)s? (is|are|was|were|ha)"
    r"|(^i|\bi) (cannot|can'?t|can not|am unable to|am not able to) (see|view|describe|assist|help|provide|identify|do)"
    r"|^i (cannot|can'?t|can not|am unable|am not able|don'?t|do not)\b|\bas an ai\b",
    re.IGNORECASE,
)
PREAMBLE = re.compile(
    r"^(sure|certainly|absolutely|of course|okay|ok|here'?s|here (is|are)|below is)\b|^#|^\*\*"
    r"|^(the |a )?(caption|description|answer|summary)\b[^.]{0,40}:"
    r"|^(in )?(the|this|these|each)( \w+)? (video|clip|footage|image|picture|photo|photograph|frame|sequence)s?,? "
    r"(we|you|shows?|depicts?|features?|captures?|is|are|begins?|starts?|opens?|displays?|presents?|portrays?|contains?)\b",
    re.IGNORECASE,
)
FORM = re.compile(r"Reference shows \S.+?[.!?…] Edited shows \S.+", re.DOTALL)
SENTENCE_ENDS = tuple(".!?…\"”')")
LONGEST_LOOP = 12  # words
TIMES = 3  # how often a group of words stands in a row in a loop
SENTENCE_WORDS = 3  # shorter sentences may occur twice
OTHER_LETTERS = 0.1  # share of letters of another script


@dataclass(frozen=True)
class Answer:
    """The text of an answer, and whether it was cut at captioner.max_tokens."""

    text: str
    is_cut: bool = False


def clean(text: str) -> str:
    """An answer as one line, without the thoughts of a reasoning model and without quotes around it."""
    line = " ".join(text.rpartition("</think>")[2].split())
    quoted = re.fullmatch(r"\"([^\"]+)\"|“([^”]+)”", line)
    return line if quoted is None else (quoted[1] or quoted[2]).strip()


class AnswerCheck:
    """Finds wrong answers. It counts the captions of all clips, to notice that a model says the same about many."""

    def __init__(self, config: Config) -> None:
        self.settings, self.phrases = config.captioner, forbidden_phrases(config)
        self.counts = Counter[str]()

    def count(self, caption: str) -> None:
        """Count a caption that is used."""
        self.counts[_plain(caption)] += 1

    def problem(self, answer: Answer) -> str | None:
        """What is wrong with an answer, or None."""
        return next(self._problems(answer), None)

    def _problems(self, answer: Answer) -> Iterator[str]:
        text, settings = answer.text, self.settings
        words, plain = len(text.split()), text.replace("\u2019", "'")
        if not text:
            yield "empty"
        if text.startswith("<think>") or (answer.is_cut and not text.endswith(SENTENCE_ENDS)):
            yield f"cut at captioner.max_tokens={settings.max_tokens}"
        if REFUSAL.search(plain):
            yield "refused"
        if PREAMBLE.search(plain):
            yield "begins with an introduction, not with the description"
        if settings.form == "edit" and not FORM.fullmatch(text):
            yield 'not in the form "Reference shows ... Edited shows ..."'
        if loop := find_loop(text):
            yield f"repeats itself: {loop}"
        if settings.script == "latin" and _share_of_other_letters(text) > OTHER_LETTERS:
            yield "not in Latin letters"
        if words < settings.min_words:
            yield f"{words} words, fewer than captioner.min_words={settings.min_words}"
        if named := find_phrases(text, self.phrases):
            yield f"mentions {', '.join(named)}"
        if (count := self.counts[_plain(text)]) >= settings.most_equal:
            yield f"the same as of {count} other clips"


def find_loop(text: str) -> str | None:
    """The words that a text repeats: a group of words three times in a row, or a sentence twice."""
    words = re.findall(r"\w+", text.casefold())
    for length in range(1, LONGEST_LOOP + 1):
        for i in range(len(words) - TIMES * length + 1):
            if all(words[i + k * length : i + (k + 1) * length] == words[i : i + length] for k in range(1, TIMES)):
                return " ".join(words[i : i + length])
    sentences = Counter(_plain(sentence) for sentence in re.split(r"[.!?]+", text))
    repeated = (s for s, count in sentences.items() if count > 1 and len(s.split()) >= SENTENCE_WORDS)
    return next(repeated, None)


def _plain(text: str) -> str:
    """The words of a text, in lower case, without punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _share_of_other_letters(text: str) -> float:
    """The share of the letters that are not Latin."""
    letters = [character for character in text if character.isalpha()]
    other = sum("LATIN" not in unicodedata.name(letter, "") for letter in letters)
    return other / max(1, len(letters))
