"""Train the upsampler: short prompts to captions, and captions back to short prompts.

    longtake train upsampler --preset tiny

The pairs are a data set's own: what names a clip in a few words, in English or Chinese, and a caption of it in English,
the captioner's where it has written them (`python -m training.evaluation.captions CAPTIONER --data DATA --write FILE`), but for
those that contradict the short text. Half of the short ones are said anew of the clip's scene, in words of a thesaurus
and with more left out, as people do. One model learns both directions of every pair, and what people say of no clip in
particular; `captioning/upsampler.py` says what for. Most words of a caption are left to chance; the few that a prompt
decides count for more, since those of which chance gets half, left and right, clear and cloudy, slow and fast, were not
learned else. Which of several things has which colour was learned last; so captions that mix them up are learned to
be the less likely ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captioning.lexicon import OPPOSITE, Meaning
from captioning.upsampler import (
    CLIP,
    PICTURE,
    SHORT,
    Ours,
    Writer,
    batched,
    load_upsampler,
    save_upsampler,
    sequence,
    tokenizer_of,
)
from training.config import UpsamplerRun
from training.dataset import (
    IMAGE_CAPTIONS,
    VIDEO_CAPTIONS,
    Bucket,
    data_hash,
    open_bucket,
    select_captions,
    shard_samples,
    weighted_sample_order,
)
from training.evaluation.captions import truth
from training.evaluation.upsampler import read, survival
from training.loop import TrainLoop, adamw, create_accelerator, describe, lr_at, optimizer_step
from training.muon import muon
from training.salience import glossary, meanings, telling
from training.synonyms import say, typed
from training.world.lexicon import SIDES
from training.world.scene import COLOURS, EVENTS, SIZES, Scene
from training.world.words import caption, said

FORMATS = ((64, 64, 17),)  # whose captions are learned
STILLS = 0.15  # how often a caption of a picture is learned
DRAWN = 0.5  # how often the short text is said anew
CHINESE = 0.4  # of those, how often in Chinese
RECAPTIONED = 0.95  # how often the caption is the captioner's own
EMPHASIS = 8.0  # what a token of both texts counts, where one of their style counts for 1
ALONE = 8  # of so many short texts one is learned without its caption
FALSE = 3  # captions that take two things for each other, beside a true one
GROUP = 16  # texts worked on at once
SURE = 0.01  # the share of true pairs that may be doubted, and of nearly true ones that may be believed
Pair = tuple[str, str, str]  # what is to be written, the short text, the caption
Choice = tuple[str, str, list[str]]  # a short text, the caption that is true, and false ones


def train(run: UpsamplerRun) -> dict:
    """Train a tokenizer and a writer from a preset; leaves their folder in `run.out` / "upsampler", and returns the
    report: losses, when the writer is trusted, and what survives of prompts.
    """
    accelerator = create_accelerator(run)
    bucket, held_out = open_bucket(run.data, FORMATS[0]), open_bucket(run.held_out, FORMATS[0])
    written = [json.loads(line) for line in run.captions_file.read_text().splitlines()] if run.captions_file else []
    if len(written) > len(bucket):
        raise ValueError(f"{run.captions_file} must hold captions of {len(bucket)} clips; it holds {len(written)}")
    describe(run, accelerator, data=data_hash(run.data, FORMATS))
    tokenizer, writer = begin(run, bucket)
    if accelerator.device.type == "cpu":  # where the other's backward takes a quarter of a step
        writer.net.set_attn_implementation("eager")
    optimizer = muon(writer.muon_params(), writer, run) if run.optimizer == "muon" else adamw(writer, run)
    writer, optimizer = accelerator.prepare(writer, optimizer)
    course = TrainLoop("train upsampler", run, accelerator, {"writer": writer, "optimizer": optimizer})
    bare = accelerator.unwrap_model(writer)
    clip_of = weighted_sample_order(bucket, run.seed, "upsampler", run.object_count_power)
    held = [pair_of(run.seed, held_out, number % len(held_out), number) for number in range(run.validation_pairs)]
    doubtful = choices_of([(held_out.scene(number % len(held_out)), pair) for number, pair in enumerate(held)])

    for step in course:
        numbers = list(shard_samples(run.batch_size, step, accelerator.process_index, accelerator.num_processes))
        pairs = [pair_of(run.seed, bucket, clip_of(number), number, written) for number in numbers]
        forth, back = losses(writer, tokenizer, pairs, accelerator.device)
        choices = choices_of(
            [(bucket.scene(clip_of(number)), pair) for number, pair in zip(numbers, pairs, strict=True)]
        )
        mixed = mistaken(bare, tokenizer, choices, accelerator.device)  # as often as each process wants
        norm = optimizer_step(accelerator, writer, optimizer, forth + back + mixed, lr_at(step, run), run.max_grad_norm)
        course.note(step, norm, written=forth, recalled=back, mixed=mixed)
        if step % run.validate_every == run.validate_every - 1:
            course.log(step + 1, validate(bare, tokenizer, held, doubtful))

    bare.eval()
    report: dict = validate(bare, tokenizer, held, doubtful)
    if accelerator.is_main_process:
        upsampler = Ours(tokenizer, bare.cpu(), glossary())
        false = [near_miss(held_out, number % len(held_out), number) for number in range(run.validation_pairs)]
        limits = limits_of(upsampler, [pair[1:] for pair in held], false)
        bare.register_to_config(**limits)
        save_upsampler(upsampler, run.out / "upsampler")
        report |= limits | {"longest": bare.config.longest, "survival": survival(upsampler, run.evaluation_prompts)}
        (run.out / "report.json").write_text(json.dumps(report, indent=2))
    accelerator.end_training()
    return report


def begin(run: UpsamplerRun, bucket: Bucket) -> tuple[Any, Writer]:
    """Return the tokenizer and the writer to train: fresh ones, or those in `run.init_from`. Raises ValueError where that
    is no folder of ours.
    """
    if run.init_from is not None:
        trained = load_upsampler(run.init_from)
        if not isinstance(trained, Ours):
            raise ValueError(f"start must be the folder of an upsampler trained here; got {run.init_from}")
        return trained.tokenizer, trained.writer.train()
    known = [pair_of(run.seed, bucket, clip, clip) for clip in range(min(len(bucket), run.tokenizer_pairs))]
    tokenizer = tokenizer_of((text for _, *texts in known for text in texts), run.vocab_size, run.context_length)
    longest = int(np.quantile([len(short.encode()) for _, short, _ in known], 1 - SURE))
    torch.manual_seed(run.seed)
    writer = Writer(
        len(tokenizer),
        run.context_length,
        run.width,
        run.heads,
        run.layers,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        longest=longest,
    )
    return tokenizer, writer


def pair_of(seed: int, bucket: Bucket, clip: int, number: int, written: Sequence[str] = ()) -> Pair:
    """Return a short text and a caption of the same clip, or of the same picture: the captioner's where it has
    `written` one of the clip, in RECAPTIONED of all cases, unless it says of this clip what is not so.
    """
    rng = np.random.default_rng([seed, 5, number])
    still = rng.random() < STILLS
    kinds = list(
        zip(
            IMAGE_CAPTIONS if still else VIDEO_CAPTIONS,
            bucket.captions[clip]["still" if still else "moving"],
            strict=True,
        )
    )
    dense = select_captions(bucket.captions[clip], "dense", still=bool(still))
    told = dense[rng.integers(len(dense))]
    if not still and rng.random() < DRAWN:
        language = "zh" if rng.random() < CHINESE else "en"
        short = say(bucket.scene(clip), language, rng)
    else:
        brief = [(text, language) for (kind, language), text in kinds if kind != "dense"]
        short, language = brief[rng.integers(len(brief))]
    short = typed(short, language, rng)
    if (
        not still
        and clip < len(written)
        and rng.random() < RECAPTIONED
        and agree(short, written[clip], bucket.scene(clip))
    ):
        told = written[clip]
    return PICTURE if still else CLIP, short, told


def agree(short: str, told: str, scene: Scene) -> bool:
    """Say whether a caption says all that a short text says, and speaks of no thing that is not in the scene."""
    return said(told).get("thing", set()) <= truth(scene)["thing"] and meanings(short) <= meanings(told)


def choices_of(told: list[tuple[Scene, Pair]]) -> list[Choice]:
    """List the choices that there are in some scenes, each with a pair of it."""
    return [choice for scene, (mark, short, _) in told if (choice := choice_of(scene, mark, short))]


def choice_of(scene: Scene, mark: str, short: str) -> Choice | None:
    """Return a short text, a caption that is true of its scene, and up to FALSE others with the same words that take
    two things for each other, or a side for the other; None where there are no two, or the short text does not tell
    them apart.
    """
    rng = np.random.default_rng([8, scene.index, len(short)])
    placed = any(name == "relation" for name, _ in meanings(short))
    if mark != CLIP or not (options := twisted(scene, placed)):
        return None
    kind, seed = ("dense", "plain")[rng.integers(2)], int(rng.integers(2**31))
    true, *false = (caption(one, kind, rng=np.random.default_rng(seed)) for one in (scene, *options))
    things = read(short).get("thing", set())
    if not placed and len(things) == len({(thing.colour, thing.shape) for thing in scene.things}):
        false = [text for text in false if not things <= read(text)["thing"]]
    false = [text for text in dict.fromkeys(false) if text != true]
    return (short, true, [false[place] for place in rng.permutation(len(false))[:FALSE]]) if false else None


def twisted(scene: Scene, placed: bool) -> list[Scene]:
    """List scenes in which two things have exchanged colours or shapes, or where `placed` their places, or one stands
    on the other side.
    """
    if scene.event == "topple":  # whose cubes are not told one by one
        return []
    found, looks = [], [(thing.colour, thing.shape) for thing in scene.things]
    for (first, a), (second, b) in combinations(enumerate(looks), 2):
        swaps = [((b[0], a[1]), (a[0], b[1])), ((a[0], b[1]), (b[0], a[1])), (b, a)]
        for swap in swaps if placed else swaps[:2]:
            new = list(looks)
            new[first], new[second] = swap
            things = [replace(thing, colour=c, shape=s) for thing, (c, s) in zip(scene.things, new, strict=True)]
            if new != looks and things[0].shape in EVENTS[scene.event] and (placed or sorted(new) != sorted(looks)):
                found.append(replace(scene, things=tuple(things)))
    taken = {thing.relation for thing in scene.things}
    for number, thing in enumerate(scene.things):
        if placed and thing.relation and OPPOSITE[thing.relation] not in taken:
            moved = replace(thing, relation=OPPOSITE[thing.relation])
            found.append(replace(scene, things=(*scene.things[:number], moved, *scene.things[number + 1 :])))
    return found


def mistaken(writer: nn.Module, tokenizer, choices: list[Choice], device: torch.device) -> Tensor:
    """Return how much false captions are preferred to true ones, by how probable each makes its short text: minus the
    logarithm of the share that a true one has of two (Bradley and Terry 1952, as arXiv 2305.18290 learns preferences).
    """
    if not choices:
        return torch.zeros((), device=device)
    rows = [sequence(tokenizer, SHORT, told, short) for short, true, false in choices for told in (true, *false)]
    places = sorted(range(len(rows)), key=lambda place: len(rows[place][0]))
    found = torch.empty(len(rows), device=device)
    for start in range(0, len(rows), GROUP):
        group = places[start : start + GROUP]
        ids, said = (part.to(device) for part in batched([rows[place] for place in group], tokenizer.pad_token_id))
        found[group] = writer(ids, said).sum(1)
    each = found.split([1 + len(false) for _, _, false in choices])
    return torch.cat([nn.functional.softplus(one[1:] - one[0]) for one in each]).mean()


def losses(writer: nn.Module, tokenizer, pairs: list[Pair], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the loss of a token of what is written out of pairs, and of what is recalled, partly out of nothing; what
    both texts say counts for EMPHASIS. GROUP texts of like length at a time, since a group is as long as its longest.
    """
    written, recalled = [], []
    for number, (mark, short, told) in enumerate(pairs):
        both = meanings(short) & meanings(told)
        written.append((*sequence(tokenizer, mark, short, told), weights(tokenizer, told, both)))
        recalled.append((*sequence(tokenizer, SHORT, told, short), weights(tokenizer, short, both)))
        if number % ALONE == 0:
            recalled.append((*sequence(tokenizer, SHORT, "", short), weights(tokenizer, short, meanings(short))))
    found = []
    for rows in (written, recalled):
        rows = sorted(rows, key=lambda row: len(row[0]))
        total = torch.zeros((), device=device)
        for start in range(0, len(rows), GROUP):
            group = rows[start : start + GROUP]
            ids, said = (part.to(device) for part in batched([row[:2] for row in group], tokenizer.pad_token_id))
            weight = torch.tensor([one for row in group for one in row[2]], device=device)
            total = total - (writer(ids, said)[said] * weight).sum()
        found.append(total / sum(sum(row[2]) for row in rows))
    return found[0], found[1]


def weights(tokenizer, text: str, about: frozenset[Meaning]) -> list[float]:
    """Weigh the tokens of a text, its end included: EMPHASIS for those that say something of what it is `about`."""
    return [EMPHASIS if tells else 1.0 for tells in telling(tokenizer, text, about)] + [1.0]


@torch.no_grad()
def validate(writer: Writer, tokenizer, pairs: list[Pair], choices: list[Choice]) -> dict[str, float]:
    """Return the losses over held-out pairs and choices."""
    written, recalled = losses(writer, tokenizer, pairs, writer.device)
    mixed = mistaken(writer, tokenizer, choices, writer.device)
    return {"held_out_written": float(written), "held_out_recalled": float(recalled), "held_out_mixed": float(mixed)}


def limits_of(upsampler: Ours, true: list[tuple[str, str]], false: list[tuple[str, str]]) -> dict[str, float]:
    """Return how improbable the least probable token of a prompt may be for a caption to be trusted where not all words
    are known, as SURE of the true captions make it, and what each token must gain: more than SURE of the true captions
    bring, and than all but SURE of the nearly true ones do.
    """
    doubts = [
        torch.cat([upsampler.doubts(short, upsampler.explained(short, [text])) for short, text in pairs]).numpy()
        for pairs in (true, false)
    ]
    least, gain = np.quantile(doubts[0], SURE, axis=0)
    gain = max(gain, np.quantile(doubts[1][:, 1], 1 - SURE))
    return {"least": math.floor(least * 1000) / 1000, "gain": math.ceil(gain * 1000) / 1000}


def near_miss(bucket: Bucket, clip: int, number: int) -> tuple[str, str]:
    """Return a short text of a clip, and a caption of one like it, but that contradicts the text in one thing."""
    rng = np.random.default_rng([6, number])
    scene, wrong = bucket.scene(clip), []
    if rng.random() < DRAWN:
        told = {"colour", "shape", "event"} | {name for name in ("size", "direction") if rng.random() < DRAWN}
        short = say(scene, "zh" if rng.random() < CHINESE else "en", rng, tuple(told))
    else:
        captions = zip(VIDEO_CAPTIONS, bucket.captions[clip]["moving"], strict=True)
        shorts = [text for kind, text in captions if kind[0] != "dense"]
        short = shorts[rng.integers(len(shorts))]
        told = set(read(short))
    subject, *others = scene.things
    colour = str(rng.choice([colour for colour in COLOURS if colour != subject.colour]))
    wrong.append(replace(scene, things=(replace(subject, colour=colour), *others)))
    if "size" in told and not others:
        size = str(rng.choice([size for size in SIZES if size != subject.size]))
        wrong.append(replace(scene, things=(replace(subject, size=size),)))
    if "direction" in told and scene.direction:
        wrong.append(replace(scene, direction=SIDES[scene.direction]))
    if others and others[-1].relation:
        wrong.append(replace(scene, things=(subject, *others[:-1])))
    return short, caption(wrong[rng.integers(len(wrong))], "dense", rng=rng)
