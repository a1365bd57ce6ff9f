"""Is a prompt said in a way that the lexicon does not misread?

A lexicon knows words, not grammar: "the ball is red", "a clear ball", "red balls", "a red ball rises". Where a prompt
is not as plain as captions are, reading it proves nothing.
"""

from __future__ import annotations

from itertools import pairwise
from unicodedata import category

from captioning.lexicon import BREAKS, LOOKS, Lexicon, Phrase, Thing

NOUN = {"shape", "colour", *LOOKS}  # attributes of what a thing is called
ARTICLES = ("a", "an", "the", "one", "some")
UPON = ("on", "onto", "in", "into", "inside", "under", "over", "above", "across", "from", "at", "上", "下", "里", "中")
PILES = ("stack", "tower", "pile", "叠", "摞")
CAMERA = ("camera", "view", "镜头")
# What words begin with that only a camera does.
CAMERAS = ("zoom", "pan", "pans", "pann", "orbi", "cran", "stat", "fixe", "镜", "camera")
MOVING = ("move", "moves", "moving", "移动")  # which say nothing without a side
CLAUSES = (*BREAKS, "while", "as", "with", "同时")


def plain(lexicon: Lexicon, text: str) -> bool:
    """Say whether all words of a text are known, things are spoken of, and nothing is said that `said` misreads."""
    phrases = list(lexicon.read(text))
    things = lexicon.things(phrases)
    known = all(phrase in lexicon.meanings or category(phrase[0][0])[0] == "P" for phrase, _ in phrases)
    if not (known and things):
        return False
    return not (_loose(lexicon, phrases) or _crowded(lexicon, phrases, things) or _astray(lexicon, phrases, things))


def _loose(lexicon: Lexicon, phrases: list[Phrase]) -> bool:
    """Say whether a look is not right before its thing, or another word is: "the ball is red", "a clear ball"."""
    near = [(phrase, set(dict(means))) for phrase, means in phrases if means or phrase[0] not in lexicon.fillers]
    counted = any("stack" in names for _, names in near)
    for (_, names), (phrase, after) in zip(near, [*near[1:], (("",), set())], strict=True):
        bound = after & NOUN or "".join(phrase) in lexicon.objects
        if (names & NOUN - {"shape"} and not bound and not counted) or (names & {"sky", "ground", "shape"} and bound):
            return True
    return False


def _crowded(lexicon: Lexicon, phrases: list[Phrase], things: list[Thing]) -> bool:
    """Say whether it is open how many things there are, which of them is meant, or what which of them does: "red
    balls", "a large ball and a cube", a red ball twice.
    """
    events = {value for _, means in phrases for name, value in means if name == "event"}
    first = [thing for thing in things if not thing.again]
    counted, named = [one for one in first if one.number], [one.name for one in first if one.name]
    bare = [one for one in first if not one.name and not one.number]
    plural = not lexicon.letters and any(phrases[one.at][0][-1].endswith("s") for one in first if not one.number)
    piled = any(phrase[0] in PILES for phrase, _ in phrases)
    return (
        len(events) > 1
        or (events == {"collide"} and len(first) < 2)
        or (bool(counted) and (events != {"topple"} or len(counted) > 1 or bool(counted[0].colour)))
        or (piled and not counted)
        or plural
        or len(set(named)) < len(named)
        or len(bare) > 1
        or (len(first) > 1 and any(one.looks for one in bare))
    )


def _astray(lexicon: Lexicon, phrases: list[Phrase], things: list[Thing]) -> bool:
    """Say whether something is said of the camera that is a thing's, of a thing that is the camera's, or of where a
    thing is that is none of the relations: "a red ball rises", "on a blue cube", "a ball on the left".
    """
    words = [phrase[0] for phrase, _ in phrases]
    related = [at for at, (_, means) in enumerate(phrases) if "relation" in dict(means)]
    chained = any(not {*BREAKS} & set(words[one:two]) for one, two in pairwise(related))
    filmed = any(next((word for word in words[at + 1 :] if word not in ARTICLES), "") in CAMERA for at in related)
    on_it = any(word in UPON and after == "it" for word, after in pairwise(words))
    return (
        len(related) != len(lexicon.places(phrases, things))
        or chained
        or filmed
        or on_it
        or any(_put(lexicon, phrases, thing) for thing in things)
        or any(_mixed(lexicon, clause) for clause in _clauses(phrases))
    )


def _put(lexicon: Lexicon, phrases: list[Phrase], thing: Thing) -> bool:
    """Say whether a thing is where something else is put, as no caption says it: "on a blue cube"."""
    if lexicon.letters:
        after = (phrase for phrase, _ in phrases[thing.at + 1 :] if phrase[0] not in (*lexicon.fillers, *BREAKS, "它"))
        return next(after, ("",)) in {(word,) for word in UPON}
    before = (one for one in reversed(phrases[: thing.at]) if not {*LOOKS, "colour"} & dict(one[1]).keys())
    phrase, meanings = next((one for one in before if one[0][0] not in ARTICLES), ((".",), frozenset()))
    return not meanings and phrase[0] in UPON


def _mixed(lexicon: Lexicon, clause: list[Phrase]) -> bool:
    """Say whether a clause is of both the camera and a thing, or tells a side that nothing moves to."""
    names = [set(dict(means)) for _, means in clause]
    said = set().union(*names)
    filmed = any("".join(phrase) in CAMERA for phrase, _ in clause)
    moves = [phrase for (phrase, _), one in zip(clause, names, strict=True) if "camera" in one]
    own = all(any(word in CAMERAS or word[:4] in CAMERAS for word in phrase) for phrase in moves)
    sides = [at for at, one in enumerate(names) if one == {"direction"}]
    told = clause if lexicon.letters else clause[: sides[0]] if sides else []
    moving = ["".join(phrase) in MOVING for phrase, _ in clause]
    return (
        (filmed and not moves)
        or (bool(moves) and (not (filmed or own) or bool(said & {"event", "speed"})))
        or (bool(sides) and not any("event" in dict(means) or "".join(phrase) in MOVING for phrase, means in told))
        or (any(moving) and not sides)
        or any(clause[at + 1 : at + 2] and clause[at + 1][0] == ("next",) for at in sides)
    )


def _clauses(phrases: list[Phrase]) -> list[list[Phrase]]:
    clauses: list[list[Phrase]] = [[]]
    for phrase in phrases:
        if "".join(phrase[0]) in CLAUSES:
            clauses.append([])
        else:
            clauses[-1].append(phrase)
    return clauses
