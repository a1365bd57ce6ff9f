"""The words that a model's training captions hold, so that people can be told which words of a prompt it never learned.

A model folder has them in `learned_words.json`. English words are compared regardless of case and regular inflection.
Chinese has no spaces: its words are the strings of characters that occur beside at least some different neighbours
(accessor variety, Feng et al. 2004, Computational Linguistics 30:1), and what captions hold between such words. A
prompt is divided so that it has as few unknown characters as possible, and then as few words: the longest matches.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from unicodedata import category, normalize

from vae.weights import WeightsError

LEARNED_WORDS = "learned_words.json"  # the file's name in a model folder
MIN_COUNT = 3  # captions that hold a word which counts as learned
MAX_CHARACTERS = 4  # of a Chinese word that is found by its neighbours
MAX_WORD = 8  # characters of any Chinese word
MAX_RUNS = 3_000  # most frequent Chinese clauses in which such words are sought
MIN_NEIGHBOURS = 2  # different characters on each side of a Chinese word
MIN_NEIGHBOURS_OF_ONE = 5  # on each side of a single character, which is more often a part of words
NAMED_EXAMPLES = 12  # learned words that a remark names
MIN_STEM = 3  # letters of a word without its ending
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # kana and Chinese characters
IS_UNSPACED = re.compile(f"[{UNSPACED}]")
TOKENS = re.compile(rf"[{UNSPACED}]+|[^\W_{UNSPACED}]+(?:['’-][^\W_{UNSPACED}]+)*|[^\w\s]")
# Words without a visible meaning: function words, and what only addresses the software.
ENGLISH_STOP_WORDS = """
    a an the and or of with in on at to from by for into onto as while then so than is are be been being was were has
    have having does do it its itself this that these those there here which who whose he she they him her them his
    their i me my we us our you your please show make create generate give want see like would let video videos clip
    film movie footage shot scene image picture photo
"""
CHINESE_STOP_WORDS = """
    的 地 得 了 着 过 在 是 有 和 与 及 并 而 里 中 上 一个 一只 一段 一张 一部 一条 个 只 它 它的 他 她 我 我想看 想 看
    请 生成 请生成 制作 做 视频 短片 影片 画面 图片 照片 场景 然后 同时 正 正在 从 把 被 那 这
"""
PARTICLES = "的个是在和与从把被这那有它了着"  # function words, at whose side a word begins or ends
STOP_WORDS = frozenset(f"{ENGLISH_STOP_WORDS}{CHINESE_STOP_WORDS}".split())
NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
NUMBERS = {str(n): word for n, word in enumerate(NUMBER_WORDS.split())}
CHINESE_NUMBERS = {
    str(n): words for n, words in enumerate(("零", "一", "二两", "三", "四", "五", "六", "七", "八", "九"))
}


@dataclass(frozen=True)
class LearnedWords:
    """The words of captions, each with the number of captions that hold it.

    `examples` are words to name where a prompt has unlearned ones, by language; none are needed. `unheard` are the
    attributes whose words captions hold, but which were measured to change nothing (`longtake sensitivity`).
    """

    counts: Mapping[str, int]
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unheard: tuple[str, ...] = ()

    @cached_property
    def base_forms(self) -> frozenset[str]:
        """All learned words and their possible base forms."""
        return frozenset(chain.from_iterable(map(base_forms, self.counts)))

    def unlearned(self, prompt: str) -> tuple[str, ...]:
        """Return the words of a prompt that no caption holds, in order, each once, as they were typed.

        Function words, punctuation, and words whose other inflections are learned are not among them.
        """
        found = dict[str, str]()
        for token in TOKENS.findall(normalize("NFC", prompt)):
            if IS_UNSPACED.match(token):
                unknown = [token[start:end] for start, end in unknown_stretches(token, self._chinese)]
            else:
                word = re.sub("['’](?:s|re|m|ve|ll|d)?$", "", token)
                unknown = [] if self._is_learned(word) else [word]
            for word in unknown:
                found.setdefault(word.lower(), word)
        return tuple(found.values())

    def _is_learned(self, token: str) -> bool:
        """Tell whether a word, number or mark without Chinese characters is learned, or has no meaning to learn."""
        if not token[0].isalnum():
            return category(token)[0] != "S" or token.isascii()  # emoji and other symbols are words of a kind
        word = token.lower()
        if word in self.counts or word in STOP_WORDS or self.base_forms & base_forms(word):
            return True
        if word.isdecimal():
            number = str(int(word))
            return any(
                name in self.counts for name in (number, NUMBERS.get(number, ""), *CHINESE_NUMBERS.get(number, ""))
            )
        parts = re.split("['’-]", word)
        return len(parts) > 1 and all(map(self._is_learned, filter(None, parts)))

    @cached_property
    def _chinese(self) -> frozenset[str]:
        return frozenset(word for word in self.counts if IS_UNSPACED.match(word)) | STOP_WORDS

    def describe(self, words: Sequence[str]) -> str:
        """Say which words of a prompt are not learned, and some that are, in the language of the words."""
        examples = self.examples.get("zh" if any(map(IS_UNSPACED.search, words)) else "en", ())[:NAMED_EXAMPLES]
        known = f"; the model knows {', '.join(examples)}, ..." if examples else ""
        return f"not learned: {', '.join(words)}{known}"

    def merged(self, other: LearnedWords | None) -> LearnedWords:
        """Return the words of both, for a model that was trained on the captions of one and then of the other."""
        if other is None:
            return self
        counts = Counter(other.counts) + Counter(self.counts)
        return LearnedWords(counts, {**other.examples, **self.examples}, self.unheard)

    def save(self, folder: Path) -> None:
        """Write the file that `read_learned_words` reads, the most frequent words first."""
        words = dict(sorted(self.counts.items(), key=lambda item: (-item[1], item[0])))
        examples = {name: list(some) for name, some in self.examples.items()}
        content = {"unheard": list(self.unheard), "examples": examples, "words": words}
        (folder / LEARNED_WORDS).write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def read_learned_words(folder: Path) -> LearnedWords | None:
    """Read the learned words of a model folder, or None where it has no such file, as models of others.

    Raises WeightsError for a damaged file.
    """
    path = folder / LEARNED_WORDS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        counts = {str(word): int(count) for word, count in content["words"].items()}
        examples = {str(name): tuple(map(str, some)) for name, some in content["examples"].items()}
        return LearnedWords(counts, examples, tuple(map(str, content.get("unheard", ()))))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path} must hold words with their counts; it does not ({error!r})") from error


def count_words(
    captions: Iterable[str], examples: Mapping[str, tuple[str, ...]] | None = None, min_count: int = MIN_COUNT
) -> LearnedWords:
    """Count the words of captions; keep those that at least `min_count` of them hold."""
    counts, runs = Counter[str](), Counter[str]()
    for caption in captions:
        tokens = set(TOKENS.findall(normalize("NFC", caption)))
        chinese = {token for token in tokens if IS_UNSPACED.match(token)}
        runs.update(chinese)
        counts.update({token.lower() for token in tokens - chinese if token[0].isalnum()})
    kept = {word: count for word, count in counts.items() if count >= min_count}
    return LearnedWords(kept | chinese_words(runs, min_count), examples or {})


def chinese_words(runs: Mapping[str, int], min_count: int = MIN_COUNT) -> dict[str, int]:
    """Find the words of unspaced clauses, which are given with their counts.

    Words that are made of shorter ones are left out. The words and the stop words together cover every clause.
    """
    counts = Counter[str]()
    before, after = dict[str, set[str]](), dict[str, set[str]]()
    for number, (text, count) in enumerate(Counter(runs).most_common(MAX_RUNS)):
        for start in range(len(text)):
            for end in range(start + 1, min(len(text), start + MAX_CHARACTERS) + 1):
                word = text[start:end]
                counts[word] += count
                # Each end of a clause counts as another neighbour, as in the paper.
                before.setdefault(word, set()).add(text[start - 1] if start else f"{number}")
                after.setdefault(word, set()).add(text[end] if end < len(text) else f"{number}")
    found: dict[str, int] = {}
    for word in sorted(counts, key=len):
        least = MIN_NEIGHBOURS if len(word) > 1 else MIN_NEIGHBOURS_OF_ONE
        varied = min(len(before[word]), len(after[word])) >= least
        bounded = len(word) > 1 and (word[0] in PARTICLES or word[-1] in PARTICLES)
        if varied and not bounded and counts[word] >= min_count and not _is_composed(word, found):
            found[word] = counts[word]
    for last in (False, False, True):
        rest, known = Counter[str](), frozenset(found) | STOP_WORDS
        for text, count in runs.items():
            for start, end in unknown_stretches(text, known):
                # A single character is a part of a word, with one of its neighbours.
                alone = end - start == 1 and not last
                pairs = {text[max(0, start - 1) : end], text[start : end + 1]} if alone else {text[start:end]}
                rest.update(dict.fromkeys(pairs, count))
        found |= {word: count for word, count in rest.items() if count >= min_count}
    return found


def unknown_stretches(text: str, words: Set[str]) -> list[tuple[int, int]]:
    """Divide unspaced text into words, with as few characters left over as possible; return the stretches left over.

    Each stretch is (start, end). Of two divisions that leave the same number, the one with fewer words is taken.
    """
    best: list[tuple[int, int, int]] = [(0, 0, 0)]  # of each prefix: characters left over, words, start of the last
    for end in range(1, len(text) + 1):
        left, count, _ = best[end - 1]
        options = [(left + 1, count + 1, end)]  # a last word that starts at the end stands for a left character
        for start in range(max(0, end - MAX_WORD), end):
            if text[start:end] in words:
                options.append((best[start][0], best[start][1] + 1, start))
        best.append(min(options))
    known, end = ["1"] * len(text), len(text)
    while end:
        start = best[end][2]
        if start == end:
            start -= 1
            known[start] = "0"
        end = start
    return [stretch.span() for stretch in re.finditer("0+", "".join(known))]


def _is_composed(word: str, words: Mapping[str, int]) -> bool:
    """Tell whether a string is a sequence of words."""
    reachable = [True] + [False] * len(word)
    for end in range(1, len(word) + 1):
        reachable[end] = any(reachable[start] and word[start:end] in words for start in range(end))
    return reachable[-1]


@lru_cache(maxsize=65_536)
def base_forms(word: str) -> frozenset[str]:
    """Return a lower-case English word and what it may be an inflection of: boxes of box, hopping of hop."""
    forms = {word}
    if word.endswith("s") and not word.endswith("ss"):
        forms.add(word[:-1])
    if word.endswith("ies"):
        forms.add(f"{word[:-3]}y")
    if re.search("(?:s|x|z|ch|sh|o)es$", word):
        forms.add(word[:-2])
    for ending in ("ing", "ed"):
        if word.endswith(ending):
            stem = word.removesuffix(ending)
            forms |= {stem, f"{stem}e"}
            if stem[-1:] == stem[-2:-1]:
                forms.add(stem[:-1])
            if ending == "ed" and stem.endswith("i"):
                forms.add(f"{stem[:-1]}y")
    return frozenset(form for form in forms if form == word or len(form) >= MIN_STEM)
