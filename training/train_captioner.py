"""Train the captioner: first on labels and short sentences, then on dense captions.

    longtake train captioner --preset tiny

The captioning loss and the contrastive loss are open_clip's CoCaLoss. The text tower that the diffusion transformer
reads stays frozen (locked-image tuning the other way round, arXiv 2111.07991), so that captions are written for that
reader. The order of caption lengths follows the report of DALL-E 3. The tokens that describe the scene, nearly half of
a caption, are scored once more on their own, because the others are style that no video determines.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from captioning.coca import CoCaCaptioner, OpenClipTokenizer, VideoCoCa
from captioning.text_encoder import TextTower, load_text_encoder, tokenize
from training.config import CaptionerRun
from training.dataset import Bucket, data_hash, open_bucket, select_captions, shard_samples, weighted_sample_order
from training.evaluation.captions import evaluate_captioner
from training.loop import (
    TrainLoop,
    build_adamw,
    create_accelerator,
    lr_at,
    math_attention_on_cpu,
    optimizer_step,
    write_run_description,
)
from training.muon import build_muon
from training.salience import salient_tokens
from training.world.words import mirror_caption
from vae.weights import hash_of_file, weights_in


def train(run: CaptionerRun) -> dict:
    """Train a captioner; write it to `run.out` / "captioner", and return the scores of its captions of held-out clips.

    Only the main process measures these, and writes them to report.json. Raises ValueError for an `init_from` that
    open_clip does not have, or a text encoder that is not a TextTower.
    """
    accelerator = create_accelerator(run)
    bucket, held_out = open_bucket(run.data, run.format), open_bucket(run.held_out, run.format)
    text_hash = None if run.init_from else hash_of_file(*weights_in(run.text_encoder / "text_encoder"))
    write_run_description(run, accelerator, data=data_hash(run.data, (run.format,)), encoder=text_hash)
    torch.manual_seed(run.seed)
    model, tokenizer = build_model(run)
    optimizer = build_adamw(model, run) if run.init_from else build_muon(model.muon_params(), model, run)
    model, optimizer = accelerator.prepare(model, optimizer)
    loop = TrainLoop("train captioner", run, accelerator, {"captioner": model, "optimizer": optimizer})
    unwrapped = accelerator.unwrap_model(model)
    coca_loss = build_coca_loss(run)
    clip_of = weighted_sample_order(bucket, run.seed, "captioner", run.object_count_power)

    for step in loop:
        pixels, texts = draw_batch(run, bucket, clip_of, step, accelerator)
        ids, _ = tokenize(tokenizer, texts, truncate=True)
        with math_attention_on_cpu(accelerator.device):
            output = model(pixels.to(accelerator.device), ids.to(accelerator.device))
        contrastive, captioning = coca_loss(**output)
        salient = torch.zeros(())
        if not run.init_from:
            marked = mark_salient_tokens(tokenizer, texts, ids).to(accelerator.device)
            labels = output["labels"].where(marked, 0)  # 0 is the padding, which the loss leaves out
            salient = run.saliency_weight * coca_loss.caption_loss(output["logits"].permute(0, 2, 1), labels)
        loss = contrastive + captioning + salient
        grad_norm = optimizer_step(accelerator, model, optimizer, loss, lr_at(step, run), run.max_grad_norm)
        with torch.no_grad():
            unwrapped.coca.logit_scale.clamp_(0, math.log(100))  # as CLIP does
        loop.record(step, grad_norm, contrastive=contrastive, captioning=captioning, salient=salient)
        if step % run.validate_every == run.validate_every - 1 and accelerator.is_main_process:
            report = evaluate_captioner(CoCaCaptioner(unwrapped, tokenizer), held_out, run.validation_clips)
            loop.log(step + 1, flatten_scores(report["all"]))
            unwrapped.train()

    captioner, report = CoCaCaptioner(unwrapped, tokenizer), {}
    if accelerator.is_main_process:
        report = evaluate_captioner(captioner, held_out)
        folder = run.out / "captioner"
        unwrapped.to(torch.float16)
        captioner.save(folder)
        for target in (run.out, folder):
            (target / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return report


def build_model(run: CaptionerRun) -> tuple[VideoCoCa, Any]:
    """Return the model to train and its tokenizer: new around the frozen text tower, or a checkpoint of open_clip."""
    if run.init_from:
        architecture, _, weights = run.init_from.partition(":")
        return VideoCoCa.from_open_clip(architecture, weights), OpenClipTokenizer(architecture)
    tokenizer, tower = load_text_encoder(run.text_encoder)
    if not isinstance(tower, TextTower):
        raise ValueError(
            f"text_encoder must be a TextTower (longtake train text); {run.text_encoder} has a {type(tower).__name__}"
        )
    config = dict(tower.config)
    model = VideoCoCa(
        vocabulary=config["vocabulary"],
        context=config["context"],
        width=config["width"],
        heads=config["heads"],
        layers=config["layers"],
        decoder_layers=run.decoder_layers,
        video_width=run.video_width,
        video_layers=run.video_layers,
        queries=run.queries,
        end_id=config["end_id"],
        pad_id=config["pad_id"],
    )
    model.coca.text.tower.load_state_dict(tower.state_dict())
    model.coca.text.requires_grad_(False)
    return model, tokenizer


def build_coca_loss(run: CaptionerRun):
    """Return open_clip's CoCaLoss: contrastive over the clips of all processes, and cross-entropy per token."""
    from open_clip.loss import CoCaLoss

    distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    return CoCaLoss(
        caption_loss_weight=run.caption_weight,
        clip_loss_weight=1.0,
        pad_id=0,
        local_loss=distributed,
        gather_with_grad=distributed,
        rank=rank,
        world_size=world_size,
    )


def draw_batch(
    run: CaptionerRun, bucket: Bucket, clip_of: Callable[[int], int], step: int, accelerator
) -> tuple[Tensor, list[str]]:
    """Draw one process's clips (B, 3, F, Y, X) of a step, with a caption each.

    Half of the clips are mirrored, some are single frames. All are functions of the seed and the global sample index.
    """
    clips, texts = [], []
    for sample in shard_samples(run.batch_size, step, accelerator.process_index, accelerator.num_processes):
        rng = np.random.default_rng([run.seed, 8, sample])
        index = clip_of(sample)
        clip = bucket.load_clips([index])[0]
        image = bool(rng.random() < run.image_ratio)
        if image:
            clip = clip[:, int(rng.integers(clip.shape[1]))][:, None].expand_as(clip)
        kinds = ("label", "plain") if step < run.short_caption_steps else ("dense",)
        captions = [text for kind in kinds for text in select_captions(bucket.captions[index], kind, image=image)]
        text = captions[int(rng.integers(len(captions)))]
        flip = bool(rng.random() < 0.5)
        clips.append(clip.flip(-1) if flip else clip)
        texts.append(mirror_caption(text) if flip else text)
    return torch.stack(clips), texts


def mark_salient_tokens(tokenizer, texts: list[str], ids: Tensor) -> Tensor:
    """Return which labels (B, L - 1) of captions with token ids (B, L) describe the scene; the end token never does."""
    marked = torch.zeros(ids[:, 1:].shape, dtype=torch.bool)
    for row, text in zip(marked, texts, strict=True):
        salient = torch.tensor(salient_tokens(tokenizer, text)[: len(row) - 1], dtype=torch.bool)
        row[: len(salient)] = salient
    return marked


def flatten_scores(scores: dict) -> dict[str, float]:
    """Return the scores of a report under flat names, for the log."""
    flat = {"cider": scores["cider"]}
    for name, values in scores.items():
        if isinstance(values, dict):
            flat |= {f"{name} {which}": value for which, value in values.items() if value is not None}
    return flat
