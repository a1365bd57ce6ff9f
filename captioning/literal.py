"""Decide whether a prompt is phrased so literally that a lexicon can be trusted to read it.

A lexicon knows words, not grammar, and misreads "the ball is red", "a clear ball", "red balls" or "a red ball rises".
For a prompt that is not as literal as a caption, its reading proves nothing.
"""

from __future__ import annotations

from itertools import pairwise
from unicodedata import category

from captioning.lexicon import APPEARANCE, BREAKS, Lexicon, Mention, Phrase

NOUN_PHRASE = {"shape", "colour", *APPEARANCE}  # attributes within a noun phrase
ARTICLES = ("a", "an", "the", "one", "some")
PREPOSITIONS = (
    *("on", "onto", "in", "into", "inside", "under", "over", "above", "across", "from", "at"),
    *("上", "下", "里", "中"),
)
STACK_WORDS = ("stack", "tower", "pile", "叠", "摞")
CAMERA_WORDS = ("camera", "view", "镜头")
# First letters of words for what only a camera does.
CAMERA_MOVES = ("zoom", "pan", "pans", "pann", "orbi", "cran", "stat", "fixe", "镜", "camera")
MOVE_WORDS = ("move", "moves", "moving", "移动")  # no meaning without a direction
CLAUSE_BREAKS = (*BREAKS, "while", "as", "with", "同时")


def is_literal(lexicon: Lexicon, text: str) -> bool:
    """Tell whether `Lexicon.read_attributes` reads a text correctly.

    All words must be known, an object must be mentioned, and no phrasing may be one that the lexicon misreads.
    """
    phrases = list(lexicon.read(text))
    mentions = lexicon.mentions(phrases)
    known = all(phrase in lexicon.meanings or category(phrase[0][0])[0] == "P" for phrase, _ in phrases)
    if not (known and mentions):
        return False
    return not (
        _has_unbound_word(lexicon, phrases)
        or _is_ambiguous(lexicon, phrases, mentions)
        or _misplaces_relation(lexicon, phrases, mentions)
    )


def _has_unbound_word(lexicon: Lexicon, phrases: list[Phrase]) -> bool:
    """Find an adjective that is not right before its noun ("the ball is red"), or another word that is ("a clear
    ball").
    """
    words = [(phrase, set(dict(means))) for phrase, means in phrases if means or phrase[0] not in lexicon.fillers]
    counted = any("stack" in names for _, names in words)
    for (_, names), (phrase, following) in zip(words, [*words[1:], (("",), set())], strict=True):
        bound = following & NOUN_PHRASE or "".join(phrase) in lexicon.objects
        if names & NOUN_PHRASE - {"shape"} and not bound and not counted:
            return True
        if names & {"sky", "ground", "shape"} and bound:
            return True
    return False


def _is_ambiguous(lexicon: Lexicon, phrases: list[Phrase], mentions: list[Mention]) -> bool:
    """Tell whether a text leaves open how many objects there are, which one is meant, or which one does what.

    Examples: "red balls"; "a large ball and a cube"; a red ball twice.
    """
    events = {value for _, means in phrases for name, value in means if name == "event"}
    objects = [mention for mention in mentions if not mention.repeated]
    counted, named = [one for one in objects if one.count], [one.name for one in objects if one.name]
    unnamed = [one for one in objects if not one.name and not one.count]
    last_words = (phrases[one.index][0][-1] for one in objects if not one.count)
    plural = not lexicon.per_character and any(word.endswith("s") for word in last_words)
    stacked = any(phrase[0] in STACK_WORDS for phrase, _ in phrases)
    return (
        len(events) > 1
        or (events == {"collide"} and len(objects) < 2)
        or (bool(counted) and (events != {"topple"} or len(counted) > 1 or bool(counted[0].colour)))
        or (stacked and not counted)
        or plural
        or len(set(named)) < len(named)
        or len(unnamed) > 1
        or (len(objects) > 1 and any(one.appearance for one in unnamed))
    )


def _misplaces_relation(lexicon: Lexicon, phrases: list[Phrase], mentions: list[Mention]) -> bool:
    """Find a phrase about the camera that belongs to an object, the reverse, or a place that is not a known relation.

    Examples: "a red ball rises"; "on a blue cube"; "a ball on the left".
    """
    words = [phrase[0] for phrase, _ in phrases]
    related = [index for index, (_, means) in enumerate(phrases) if "relation" in dict(means)]
    chained = any(not {*BREAKS} & set(words[one:two]) for one, two in pairwise(related))
    nouns = (next((word for word in words[index + 1 :] if word not in ARTICLES), "") for index in related)
    to_camera = any(noun in CAMERA_WORDS for noun in nouns)
    on_it = any(word in PREPOSITIONS and following == "it" for word, following in pairwise(words))
    return (
        len(related) != len(lexicon.places(phrases, mentions))
        or chained
        or to_camera
        or on_it
        or any(_is_place(lexicon, phrases, mention) for mention in mentions)
        or any(_mixes_subjects(lexicon, clause) for clause in _clauses(phrases))
    )


def _is_place(lexicon: Lexicon, phrases: list[Phrase], mention: Mention) -> bool:
    """Tell whether an object is where something else is put ("on a blue cube"), which no caption says."""
    if lexicon.per_character:
        skipped = (*lexicon.fillers, *BREAKS, "它")
        following = (phrase for phrase, _ in phrases[mention.index + 1 :] if phrase[0] not in skipped)
        return next(following, ("",)) in {(word,) for word in PREPOSITIONS}
    preceding = (one for one in reversed(phrases[: mention.index]) if not {*APPEARANCE, "colour"} & dict(one[1]).keys())
    phrase, meanings = next((one for one in preceding if one[0][0] not in ARTICLES), ((".",), frozenset()))
    return not meanings and phrase[0] in PREPOSITIONS


def _mixes_subjects(lexicon: Lexicon, clause: list[Phrase]) -> bool:
    """Tell whether a clause is about both the camera and an object, or gives a direction that nothing moves in."""
    names = [set(dict(means)) for _, means in clause]
    all_names = set().union(*names)
    names_camera = any("".join(phrase) in CAMERA_WORDS for phrase, _ in clause)
    moves = [phrase for (phrase, _), one in zip(clause, names, strict=True) if "camera" in one]
    only_camera = all(any(word in CAMERA_MOVES or word[:4] in CAMERA_MOVES for word in phrase) for phrase in moves)
    directions = [index for index, one in enumerate(names) if one == {"direction"}]
    before = clause if lexicon.per_character else clause[: directions[0]] if directions else []
    moving = ["".join(phrase) in MOVE_WORDS for phrase, _ in clause]
    return (
        (names_camera and not moves)
        or (bool(moves) and (not (names_camera or only_camera) or bool(all_names & {"event", "speed"})))
        or (
            bool(directions)
            and not any("event" in dict(means) or "".join(phrase) in MOVE_WORDS for phrase, means in before)
        )
        or (any(moving) and not directions)
        or any(clause[index + 1 : index + 2] and clause[index + 1][0] == ("next",) for index in directions)
    )


def _clauses(phrases: list[Phrase]) -> list[list[Phrase]]:
    clauses: list[list[Phrase]] = [[]]
    for phrase in phrases:
        if "".join(phrase[0]) in CLAUSE_BREAKS:
            clauses.append([])
        else:
            clauses[-1].append(phrase)
    return clauses
