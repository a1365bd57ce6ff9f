"""Train the text tower contrastively: which captions go with which clip.

    longtake train text --preset tiny

A tokenizer is learned from the captions, then a text tower and a video tower on clips and captions of every kind and
language. A step takes two captions of each clip: the first must match the clip, and both each other. So synonyms, short
and dense captions, and the two languages get similar vectors even before the video tower has learned much. The
diffusion transformer reads the text tower's token embeddings and its pooled vector.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioning.contrastive import VideoTower, contrastive_loss
from captioning.text_encoder import SUBFOLDERS, TextTower, encode_prompts, tokenize, train_tokenizer
from training.config import TextRun
from training.dataset import Bucket, data_hash, open_bucket, sample_order, select_captions, shard_samples
from training.loop import TrainLoop, build_adamw, create_accelerator, lr_at, optimizer_step, write_run_description


class ContrastiveTowers(nn.Module):
    """The text tower and the video tower as one module, so that one optimizer step trains both."""

    def __init__(self, run: TextRun, vocab_size: int, end_id: int, pad_id: int):
        super().__init__()
        self.text = TextTower(vocab_size, run.context_length, run.width, run.heads, run.layers, end_id, pad_id)
        self.video = VideoTower(
            width=run.video_width, layers=run.video_layers, heads=run.video_width // 64, output_width=run.width
        )

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return two contrastive losses for clips (B, 3, F, Y, X) and token ids (2 B, L) of two captions each.

        The first is between the clips and their first captions, the second between first and second captions.
        """
        texts, others = self.text(ids)[1].chunk(2)
        scale = self.video.logit_scale
        return contrastive_loss(self.video(pixels)[0], texts, scale), contrastive_loss(others, texts, scale)


def train(run: TextRun) -> dict:
    """Train a tokenizer and a text tower; write both folders to `run.out` / "text", and return the report.

    The video tower is written to `run.out` / "video_tower".
    """
    accelerator = create_accelerator(run)
    bucket = open_bucket(run.data, run.format)
    write_run_description(run, accelerator, data=data_hash(run.data, (run.format,)))
    texts = (text for captions in bucket.captions for kind in captions.values() for text in kind)
    tokenizer: Any = train_tokenizer(texts, run.vocab_size, run.context_length)
    torch.manual_seed(run.seed)
    towers = ContrastiveTowers(run, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    towers, optimizer = accelerator.prepare(towers, build_adamw(towers, run))
    loop = TrainLoop("train text", run, accelerator, {"towers": towers, "optimizer": optimizer})
    unwrapped = accelerator.unwrap_model(towers)

    for step in loop:
        pixels, texts = draw_batch(run, bucket, step, accelerator)
        ids, _ = tokenize(tokenizer, texts, truncate=True)
        video_text, text_text = towers(pixels.to(accelerator.device), ids.to(accelerator.device))
        loss = video_text + text_text
        grad_norm = optimizer_step(accelerator, towers, optimizer, loss, lr_at(step, run), run.max_grad_norm)
        loop.record(step, grad_norm, video_text=video_text, text_text=text_text)
        if step % run.validate_every == run.validate_every - 1:
            loop.log(step + 1, retrieval(unwrapped, tokenizer, open_bucket(run.held_out, run.format)))

    unwrapped.eval()
    report = retrieval(unwrapped, tokenizer, open_bucket(run.held_out, run.format))
    if accelerator.is_main_process:
        folder = run.out / "text"
        unwrapped.text.save_pretrained(folder / SUBFOLDERS[0])
        tokenizer.save_pretrained(folder / SUBFOLDERS[1])
        unwrapped.video.save_pretrained(run.out / "video_tower")
        (run.out / "report.json").write_text(json.dumps(report, indent=2))
    accelerator.end_training()
    return report


def draw_batch(run: TextRun, bucket: Bucket, step: int, accelerator) -> tuple[Tensor, list[str]]:
    """Draw one process's clips (B, 3, F, Y, X) of a step and 2 B captions: one of each clip, then another of each.

    All are functions of the seed and the global sample index.
    """
    clip_of = sample_order(run.seed, "text", len(bucket))
    samples = list(shard_samples(run.batch_size, step, accelerator.process_index, accelerator.num_processes))
    pairs = [
        np.random.default_rng([run.seed, 4, n]).choice(bucket.captions[clip_of(n)]["moving"], 2, replace=False)
        for n in samples
    ]
    texts = [str(pair[which]) for which in (0, 1) for pair in pairs]
    return bucket.load_clips([clip_of(n) for n in samples]), texts


@torch.no_grad()
def retrieval(towers: ContrastiveTowers, tokenizer, bucket: Bucket, clips: int = 256) -> dict[str, float]:
    """Return how often a dense caption finds its own clip among `clips` held-out ones: recall at 1 and at 5."""
    indices = range(min(clips, len(bucket)))
    device = towers.video.device
    texts = [select_captions(bucket.captions[index], "dense")[0] for index in indices]
    text = F.normalize(encode_prompts(texts, tokenizer, towers.text, truncate=True).pooled, dim=-1)
    video = torch.cat([towers.video(bucket.load_clips([index]).to(device))[0] for index in indices])
    ranking = (text @ F.normalize(video, dim=-1).T).argsort(1, descending=True)
    hits = ranking == torch.arange(len(text), device=device)[:, None]
    return {
        "clips": len(text),
        "first": float(hits[:, 0].float().mean()),
        "within_five": float(hits[:, :5].any(1).float().mean()),
    }
