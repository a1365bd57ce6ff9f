"""Train the captioner: first to name what is seen, then to describe all of it.

    longtake train captioner --preset tiny

The caption loss and the contrastive loss are open_clip's CoCaLoss. The text tower that the diffusion transformer reads
with stays as it is (locked, as in LiT, arXiv 2111.07991), so that the captioner learns to speak to that reader. As
DALL-E 3's report describes, short texts come first (labels, and sentences such as people write) and long descriptions
after. The words that tell the scene, nearly half of a description, are scored once more by themselves, since the
others are a matter of style that no picture decides.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from captioning.coca import CoCaCaptioner, OpenClipWords, VideoCoCa
from captioning.text_encoder import TextTower, load_text_encoder, tokenize
from training.config import CaptionerRun
from training.dataset import Bucket, data_hash, open_bucket, select_captions, shard_samples, weighted_sample_order
from training.evaluation.captions import measure
from training.loop import TrainLoop, adamw, create_accelerator, describe, lr_at, math_attention_on_cpu, optimizer_step
from training.muon import muon
from training.salience import telling
from training.world.words import in_a_mirror
from vae.weights import hash_of_file, weights_in

FORMAT = (64, 64, 17)


def train(run: CaptionerRun) -> dict:
    """Train a captioner from a preset; leaves it in `run.out` / "captioner", and returns how true and how well put its
    captions of held-out clips are, also in report.json; the main process alone measures that.

    Raises ValueError for a start that open_clip does not have, or a text encoder that is not ours.
    """
    accelerator = create_accelerator(run)
    bucket, held_out = open_bucket(run.data, FORMAT), open_bucket(run.held_out, FORMAT)
    encoder = None if run.init_from else hash_of_file(*weights_in(run.text_encoder / "text_encoder"))
    describe(run, accelerator, data=data_hash(run.data, (FORMAT,)), encoder=encoder)
    torch.manual_seed(run.seed)
    model, tokenizer = begun(run)
    optimizer = adamw(model, run) if run.init_from else muon(model.muon_params(), model, run)
    model, optimizer = accelerator.prepare(model, optimizer)
    course = TrainLoop("train captioner", run, accelerator, {"captioner": model, "optimizer": optimizer})
    bare = accelerator.unwrap_model(model)
    loss_of = coca_loss(run)
    clip_of = weighted_sample_order(bucket, run.seed, "captioner", run.object_count_power)

    for step in course:
        pixels, texts = batch(run, bucket, clip_of, step, accelerator)
        ids, _ = tokenize(tokenizer, texts, truncate=True)
        with math_attention_on_cpu(accelerator.device):
            found = model(pixels.to(accelerator.device), ids.to(accelerator.device))
        match, words = loss_of(**found)
        told = torch.zeros(())
        if not run.init_from:
            marked = found["labels"].where(telling_of(tokenizer, texts, ids).to(accelerator.device), 0)
            told = run.saliency_weight * loss_of.caption_loss(found["logits"].permute(0, 2, 1), marked)
        norm = optimizer_step(accelerator, model, optimizer, match + words + told, lr_at(step, run), run.max_grad_norm)
        with torch.no_grad():
            bare.coca.logit_scale.clamp_(0, math.log(100))  # as CLIP does
        course.note(step, norm, match=match, words=words, told=told)
        if step % run.validate_every == run.validate_every - 1 and accelerator.is_main_process:
            report = measure(CoCaCaptioner(bare, tokenizer), held_out, run.validation_clips)
            course.log(step + 1, flat(report["all"]))
            bare.train()

    captioner, report = CoCaCaptioner(bare, tokenizer), {}
    if accelerator.is_main_process:
        report = measure(captioner, held_out)
        folder = run.out / "captioner"
        bare.to(torch.float16)
        captioner.save(folder)
        for place in (run.out, folder):
            (place / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return report


def begun(run: CaptionerRun) -> tuple[VideoCoCa, object]:
    """Return what is trained and its tokenizer: a new model around the locked text tower, or a checkpoint of
    open_clip's.
    """
    if run.init_from:
        architecture, _, weights = run.init_from.partition(":")
        return VideoCoCa.from_open_clip(architecture, weights), OpenClipWords(architecture)
    tokenizer, tower = load_text_encoder(run.text_encoder)
    if not isinstance(tower, TextTower):
        raise ValueError(
            f"a captioner's text must be a text tower of ours; {run.text_encoder} holds a {type(tower).__name__}"
        )
    shape = dict(tower.config)
    model = VideoCoCa(
        vocabulary=shape["vocabulary"],
        context=shape["context"],
        width=shape["width"],
        heads=shape["heads"],
        layers=shape["layers"],
        decoder_layers=run.decoder_layers,
        watcher_width=run.video_width,
        watcher_layers=run.video_layers,
        queries=run.queries,
        end_id=shape["end_id"],
        pad_id=shape["pad_id"],
    )
    model.coca.text.tower.load_state_dict(tower.state_dict())
    model.coca.text.requires_grad_(False)
    return model, tokenizer


def coca_loss(run: CaptionerRun):
    """Return open_clip's CoCaLoss: contrastive, over the clips of all processes, and word by word."""
    from open_clip.loss import CoCaLoss

    many = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    rank, processes = (dist.get_rank(), dist.get_world_size()) if many else (0, 1)
    return CoCaLoss(
        caption_loss_weight=run.caption_weight,
        clip_loss_weight=1.0,
        pad_id=0,
        local_loss=many,
        gather_with_grad=many,
        rank=rank,
        world_size=processes,
    )


def batch(run: CaptionerRun, bucket: Bucket, clip_of: Callable, step: int, accelerator) -> tuple[Tensor, list[str]]:
    """Return a step's clips (B, 3, F, Y, X), half of them in a mirror and some of them stills, and a caption of each:
    functions of the seed and each sample's number alone.
    """
    clips, texts = [], []
    for number in shard_samples(run.batch_size, step, accelerator.process_index, accelerator.num_processes):
        rng = np.random.default_rng([run.seed, 8, number])
        own = clip_of(number)
        clip = bucket.load_clips([own])[0]
        still = bool(rng.random() < run.image_ratio)
        if still:
            clip = clip[:, int(rng.integers(clip.shape[1]))][:, None].expand_as(clip)
        kinds = ("label", "plain") if step < run.short_caption_steps else ("dense",)
        captions = [text for kind in kinds for text in select_captions(bucket.captions[own], kind, still=still)]
        text = captions[int(rng.integers(len(captions)))]
        mirrored = bool(rng.random() < 0.5)
        clips.append(clip.flip(-1) if mirrored else clip)
        texts.append(in_a_mirror(text) if mirrored else text)
    return torch.stack(clips), texts


def telling_of(tokenizer, texts: list[str], ids: Tensor) -> Tensor:
    """Return which labels (B, L - 1) of captions with ids (B, L) tell something; the last of a cut one does not."""
    rows = torch.zeros(ids[:, 1:].shape, dtype=torch.bool)
    for row, text in zip(rows, texts, strict=True):
        tells = torch.tensor(telling(tokenizer, text)[: len(row) - 1], dtype=torch.bool)
        row[: len(tells)] = tells
    return rows


def flat(scores: dict) -> dict[str, float]:
    """Return the numbers of a report's part by one name each."""
    found = {"cider": scores["cider"]}
    for name, values in scores.items():
        if isinstance(values, dict):
            found |= {f"{name} {which}": value for which, value in values.items() if value is not None}
    return found
