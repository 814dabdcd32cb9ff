"""The answer of an evaluation in one sentence: is the output better than its input and the base, and where is it worse?

The sentence is composed from the outcomes of the gates, so it never says more than they do: what was not decided, or
not measured, is named as such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.clips.judged_adapter import NONE
from eval.judging.finding import OF_THE_MACHINE
from eval.judging.harm import HARM_LIMIT, harm
from eval.judging.ranking import Ranking, ranking
from eval.judging.verdicts import Verdict, is_small

Scores = Mapping[str, Any]
SEPARATOR = "; "
USES = {"holds": "it uses {}", "fails": "it does not use {}", "inconclusive": "whether it uses {} is not decided"}
TOLD_ELSEWHERE = ("control not followed", "worse than the input")  # symptoms that other clauses tell


@dataclass(frozen=True)
class Phrase:
    """How the sentence speaks of a gate: `is better` or `is not better` + `than its input`.

    worse: replaces `no` if even the better end of the interval is on the bad side of `even`, the value of no
    difference. rival: what the output is compared with, in the words of a gate that was not measured. quantity: the
    name of the value; empty for a gain, which is written with its sign. measured: whether the sentence gives the value.
    """

    yes: str
    no: str
    than: str
    rival: str
    worse: str = ""
    even: float = 0.0
    quantity: str = ""
    measured: bool = True


def _better(rival: str) -> Phrase:
    return Phrase("is better", "is not better", f"than {rival}", rival, worse="is worse")


def _colour(rival: str) -> Phrase:
    yes, no = "is nearer to the right colours", "is not nearer to the right colours"
    quantity = "chroma error relative to it"
    return Phrase(yes, no, f"than {rival}", rival, "is further from the right colours", 1.0, quantity)


INPUT, BASE = "its input", "the base with the reference"
FILTER, OTHER = "the best classic filter", "another clip's reference"
OWN = Phrase("follows", "does not follow", "its own reference", OTHER, measured=False)
PHRASES: dict[str, Phrase] = {  # name of a gate -> its words
    "gain_over_input": _better(INPUT),
    "gain_over_base": _better(BASE),
    "gain_over_classic": _better(FILTER),
    "chroma_ratio": _colour(INPUT),
    "chroma_over_base": _colour(BASE),
    "edge_gap": Phrase(
        "follows", "does not follow", "its reference beyond chance", "another clip", quantity="edge F1 above chance"
    ),
    "follows": Phrase(
        "follows",
        "does not follow",
        "its reference",
        "another clip",
        quantity="share of the way from chance to the VAE",
    ),
    "picture": Phrase(
        "is nearer to the target",
        "is not nearer to the target",
        f"than {BASE}",
        BASE,
        worse="is further from the target",
    ),
    "adapter_gain": Phrase(
        "predicts held-out clips better",
        "does not predict held-out clips better",
        "than the base",
        "the base",
        worse="predicts held-out clips worse",
        quantity="percent of its velocity loss removed",
    ),
    "part_gain": Phrase(
        "makes the parts that are not given nearer to the target",
        "does not make the parts that are not given nearer to the target",
        "than the base",
        "the base",
        worse="makes the parts that are not given worse",
    ),
    "swap_drop": OWN,
    "swap_floor": Phrase("changes", "does not change", "with the reference", OTHER, measured=False),
}


def phrase(name: str) -> Phrase:
    """The words of a gate; one without words of its own is called by its name.

    The gate of one of several controls, `follows.pose`, names its control.
    """
    gate, _, control = name.partition(".")
    words = PHRASES.get(gate)
    if words is None:
        return Phrase("meets", "does not meet", f"the gate {name}", f"the gate {name}", quantity=name)
    if not control:
        return words
    return replace(words, than=f"{words.than} for {control}", rival=f"{words.rival} for {control}")


def answer(scores: Scores) -> str:
    """E.g. `deblur is better than its input (+2.1 dB, 95 % +1.4 to +2.8 over 6 recordings); it is worse than its input
    by more than 0.5 dB in 3 of 24 windows, most in garden-00001 (by 1.2 dB).`"""
    gates: list[Verdict] = [verdict for verdict in scores["verdicts"] if verdict["kind"] == "gate"]
    clauses: list[str] = []
    for outcome in dict.fromkeys(gate["outcome"] for gate in gates):
        group = [gate for gate in gates if gate["outcome"] == outcome]
        clauses += _open(group) if outcome == "inconclusive" else [_decided(group)]
    subject = _subject(scores)
    clauses = [clause.replace("{it}", subject if i == 0 else "it") for i, clause in enumerate(clauses)]
    unmeasured = list(dict.fromkeys(phrase(name).rival for name in scores["gates"]["not_measured"]))
    if unmeasured:
        start = "" if gates else f"{subject} was not judged: "
        clauses.append(f"{start}it was not compared with {_listed(unmeasured, 'or')}")
    return SEPARATOR.join([*clauses, *_of_references(scores), *_where_worse(scores), *_bad_symptoms(scores)]) + "."


def _subject(scores: Scores) -> str:
    adapter = scores["adapter"]
    if adapter["path"] == NONE:
        return f"{scores['task']} without an adapter"
    if "videos_sha256" in adapter["metadata"]:
        return f"{scores['task']} in the clips of {Path(adapter['path']).name}"
    return str(scores["task"])


def _decided(gates: Sequence[Verdict]) -> str:
    """`{it} is better than its input (...) and than the best classic filter (...) and follows its own reference`: gates
    that hold, or gates that fail."""
    return f"{{it}} {_predicates(gates, 'and')}"


def _open(gates: Sequence[Verdict]) -> list[str]:
    """`whether {it} is better than the base with the reference (...) is not decided`, and a clause for each number of
    clips that is too small to decide."""
    groups: dict[tuple[int, int] | None, list[Verdict]] = {}  # windows and recordings, None if there are enough
    for gate in gates:
        clips = (gate["value"]["n"], gate["by_source"]["n"]) if is_small(gate) else None
        groups.setdefault(clips, []).append(gate)
    clauses = []
    for clips, group in groups.items():
        question = f"whether {{it}} {_predicates(group, 'or')}"
        if clips is None:
            clauses.append(f"{question} is not decided")
        else:
            count = f"{_number(clips[0], 'window')} of {_number(clips[1], 'recording')}"
            clauses.append(f"{count} {'is' if clips[0] == 1 else 'are'} too few to decide {question}")
    return clauses


def _predicates(gates: Sequence[Verdict], word: str) -> str:
    """`is better than its input (...) and than the best classic filter (...)`: gates of one outcome, joined by `word`.

    The number of recordings is given where it is another than in the value before.
    """
    by_verb: dict[str, list[tuple[Verdict, Phrase]]] = {}
    for gate in gates:
        words = phrase(gate["name"])
        verb = words.yes if gate["outcome"] != "fails" else words.worse if _is_worse(gate, words) else words.no
        by_verb.setdefault(verb, []).append((gate, words))
    parts, recordings = [], 0
    for verb, group in by_verb.items():
        rivals = []
        for gate, words in group:
            value = _value(gate, words, with_count=gate["by_source"]["n"] != recordings)
            recordings = gate["by_source"]["n"] if words.measured else recordings
            rivals.append(f"{words.than}{value}")
        parts.append(f"{verb} {_listed(rivals, word)}")
    return _listed(parts, word)


def _is_worse(gate: Verdict, words: Phrase) -> bool:
    """Whether the whole interval is on the bad side of no difference."""
    low, high = gate["value"]["low"], gate["value"]["high"]
    if not words.worse or low is None or high is None:
        return False
    return low > words.even if words.even else high < words.even


def _value(gate: Verdict, words: Phrase, with_count: bool) -> str:
    """` (+2.1 dB, 95 % +1.4 to +2.8 over 6 recordings)`. The requirement is named if a difference is too small."""
    if not words.measured:
        return ""
    value = gate["value"]
    low, high = value["low"], value["high"]
    form = "{:.2f}" if words.quantity else "{:+.1f}"
    text = f"{words.quantity} {value['mean']:.2f}" if words.quantity else f"{value['mean']:+.1f} dB"
    if low is not None and high is not None:
        text += f", 95 % {form.format(low)} to {form.format(high)}"
    text += f" over {_number(gate['by_source']['n'], 'recording')}" if with_count else ""
    differs = low is not None and high is not None and (high < words.even if words.even else low > words.even)
    required = f", required {gate['threshold']}" if differs and gate["outcome"] != "holds" else ""
    return f" ({text}{required})"


def _of_references(scores: Scores) -> list[str]:
    """`it uses the reference first`, `it does not use the reference still`: of several references, by their claims."""
    outcomes = {verdict["name"]: verdict["outcome"] for verdict in scores["verdicts"]}
    by_outcome: dict[str, list[str]] = {"holds": [], "fails": [], "inconclusive": []}
    for name in scores.get("references", {}):
        if (outcome := outcomes.get(f"follows {name}")) is not None:
            by_outcome[outcome].append(name)
    clauses = []
    for outcome, names in by_outcome.items():
        if names:
            noun = "reference" if len(names) == 1 else "references"
            which = f"the {noun} {_listed(names, 'and' if outcome == 'holds' else 'or')}"
            clauses.append(USES[outcome].format(which))
    return clauses


def _where_worse(scores: Scores) -> list[str]:
    """How many windows are worse than their input, or agree less with the reference than the base alone."""
    harmed = harm(scores)
    if harmed is not None:
        text = f"it is worse than its input by more than {HARM_LIMIT:g} dB in {_count(harmed['windows'], harmed['n'])}"
        most = f", most in {harmed['windows'][0]} (by {harmed['worst_loss']:.1f} dB)" if harmed["windows"] else ""
        return [text + most]
    ranked: Ranking = ranking(scores)
    if ranked.over is None:
        return []
    order = [i for i in ranked.worst_first() if ranked.values[i] is not None]
    if not order:
        return []
    worse = [i for i in order if (ranked.values[i] or 0.0) < 0]
    title, unit = (scores["metrics"][ranked.metric][key] for key in ("title", "unit"))
    text = f"its {title} is worse than that of the base alone in {_count(worse, len(order))}"
    if not worse:
        return [text]
    loss = f"{-(ranked.values[worse[0]] or 0.0):.2f} {unit}".rstrip()
    return [f"{text}, most in {scores['clips'][worse[0]]['key']} (by {loss})"]


def _bad_symptoms(scores: Scores) -> list[str]:
    """`its clips have bad symptoms: noise and wrong levels`. Gates of PSNR pass noise that is weaker than the damage of
    the input, so a sentence without it would call such clips good."""
    names = [flag["symptom"] for flag in scores.get("flags", ()) if flag["level"] == "bad"]
    shown = [name for name in names if name not in (*TOLD_ELSEWHERE, *OF_THE_MACHINE)]
    return [f"its clips have bad symptoms: {_listed(shown)}"] if shown else []


def _count(some: Sequence[Any], of: int) -> str:
    return f"{len(some) or 'none'} of {_number(of, 'window')}"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"


def _listed(parts: Sequence[str], word: str = "and") -> str:
    """`a, b and c`."""
    return f" {word} ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
