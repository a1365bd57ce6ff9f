"""Train the text tower: which words go with which clip.

    longtake train text --preset tiny

A tokenizer is learned from the captions, then a text tower and a video tower contrastively on clips and captions of
every kind and language. Each step shows two captions of every clip: one is to find the clip, and both each other, so
that synonyms, short and dense captions and the two languages meet also where the video tower still sees little. What
the diffusion transformer reads are the text tower's token features and its pooled vector.
"""

from __future__ import annotations

import json

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from captioning.contrastive import VideoTower, contrast
from captioning.text_encoder import SUBFOLDERS, TextTower, encode_prompts, tokenize, train_tokenizer
from training.config import TextRun
from training.dataset import Bucket, data_hash, open_bucket, sample_order, select_captions, shard_samples
from training.loop import TrainLoop, adamw, create_accelerator, describe, lr_at, optimizer_step

FORMATS = ((64, 64, 17),)  # what the towers watch


class Pair(nn.Module):
    """Both towers as one module, which is what a step trains."""

    def __init__(self, run: TextRun, vocabulary: int, end_id: int, pad_id: int):
        super().__init__()
        self.text = TextTower(vocabulary, run.context_length, run.width, run.heads, run.layers, end_id, pad_id)
        self.video = VideoTower(
            width=run.video_width, layers=run.video_layers, heads=run.video_width // 64, output_width=run.width
        )

    def forward(self, pixels, ids):
        """Return the losses of clips (B, 3, F, Y, X) against the first B of 2 B captions, and of those against the
        rest.
        """
        texts, others = self.text(ids)[1].chunk(2)
        scale = self.video.logit_scale
        return contrast(self.video(pixels)[0], texts, scale), contrast(others, texts, scale)


def train(run: TextRun) -> dict:
    """Train a tokenizer and a text tower from a preset; leaves both folders and the video tower in `run.out`, and
    returns the report.
    """
    accelerator = create_accelerator(run)
    bucket = open_bucket(run.data, FORMATS[0])
    describe(run, accelerator, data=data_hash(run.data, FORMATS))
    every = (text for captions in bucket.captions for kind in captions.values() for text in kind)
    tokenizer = train_tokenizer(every, run.vocab_size, run.context_length)
    torch.manual_seed(run.seed)
    pair = Pair(run, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    pair, optimizer = accelerator.prepare(pair, adamw(pair, run))
    course = TrainLoop("train text", run, accelerator, {"pair": pair, "optimizer": optimizer})
    bare = accelerator.unwrap_model(pair)

    for step in course:
        pixels, texts = batch(run, bucket, step, accelerator)
        ids, _ = tokenize(tokenizer, texts, truncate=True)
        seen, said = pair(pixels.to(accelerator.device), ids.to(accelerator.device))
        norm = optimizer_step(accelerator, pair, optimizer, seen + said, lr_at(step, run), run.max_grad_norm)
        course.note(step, norm, seen=seen, said=said)
        if step % run.validate_every == run.validate_every - 1:
            course.log(step + 1, retrieval(bare, tokenizer, open_bucket(run.held_out, FORMATS[0])))

    bare.eval()
    report = retrieval(bare, tokenizer, open_bucket(run.held_out, FORMATS[0]))
    if accelerator.is_main_process:
        folder = run.out / "text"
        bare.text.save_pretrained(folder / SUBFOLDERS[0])
        tokenizer.save_pretrained(folder / SUBFOLDERS[1])
        bare.video.save_pretrained(run.out / "video_tower")
        (run.out / "report.json").write_text(json.dumps(report, indent=2))
    accelerator.end_training()
    return report


def batch(run: TextRun, bucket: Bucket, step: int, accelerator) -> tuple[torch.Tensor, list[str]]:
    """Return a step's clips (B, 3, F, Y, X) and 2 B captions, one of each and then another of each: functions of the
    seed and each sample's number alone.
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
def retrieval(pair: Pair, tokenizer, bucket: Bucket, clips: int = 256) -> dict[str, float]:
    """Return how often a dense caption finds its own clip among `clips` held-out ones, first or within five."""
    numbers = range(min(clips, len(bucket)))
    device = pair.video.device
    texts = [select_captions(bucket.captions[n], "dense")[0] for n in numbers]
    text = F.normalize(encode_prompts(texts, tokenizer, pair.text, truncate=True).pooled, dim=-1)
    video = torch.cat([pair.video(bucket.load_clips([n]).to(device))[0] for n in numbers])
    rank = (text @ F.normalize(video, dim=-1).T).argsort(1, descending=True) == torch.arange(len(text), device=device)[
        :, None
    ]
    return {
        "clips": len(text),
        "first": float(rank[:, 0].float().mean()),
        "within_five": float(rank[:, :5].any(1).float().mean()),
    }
