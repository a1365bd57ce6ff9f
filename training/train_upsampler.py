"""Train the upsampler: prompts to captions, and captions back to prompts.

    longtake train upsampler --preset tiny

Pairs (`prompt_pairs.py`) are short texts of a dataset's clips, or prompts drawn for their scenes in synonyms, with
English captions: the captioner's where `python -m training.evaluation.captions` wrote them. One model learns both
directions of every pair, and prompts without a caption; `captioning/upsampler.py` says how it uses them. Most tokens of
a caption are style. The few that a prompt determines get more weight: without it, those that chance gets right half of
the time (left and right, clear and cloudy, slow and fast) were not learned. Which of several objects has which
attribute is learned last, so captions that confuse objects are trained to be less likely than true ones.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captioning.lexicon import Meaning
from captioning.upsampler import (
    SHORT_PROMPT,
    TrainedUpsampler,
    UpsamplerModel,
    load_upsampler,
    pad_rows,
    save_upsampler,
    sequence_ids,
    train_upsampler_tokenizer,
)
from training.config import UpsamplerRun
from training.dataset import Bucket, data_hash, open_bucket, shard_samples, weighted_sample_order
from training.evaluation.upsampler import measure_survival
from training.loop import TrainLoop, build_adamw, create_accelerator, lr_at, optimizer_step, write_run_description
from training.muon import build_muon
from training.prompt_pairs import CaptionChoice, PromptPair, draw_choices, draw_near_miss, draw_pair
from training.salience import build_lexicon_set, meanings_of, salient_tokens

SALIENT_WEIGHT = 8.0  # loss weight of a token with a meaning that prompt and caption share; others have 1
UNCONDITIONAL_EVERY = 8  # one in so many prompts is also trained without its caption
FORWARD_ROWS = 16  # texts in one forward pass; it is padded to the longest
OUTLIERS = 0.01  # fraction of true pairs that may be distrusted, and of near misses that may be trusted


def train(run: UpsamplerRun) -> dict:
    """Train a tokenizer and an upsampler; write their folder `run.out` / "upsampler", and return the report.

    The report has the validation losses, the confidence thresholds, and how much of test prompts survives. Raises
    ValueError if `captions_file` has more captions than there are clips.
    """
    accelerator = create_accelerator(run)
    bucket, held_out = open_bucket(run.data, run.format), open_bucket(run.held_out, run.format)
    captions = [json.loads(line) for line in run.captions_file.read_text().splitlines()] if run.captions_file else []
    if len(captions) > len(bucket):
        raise ValueError(
            f"captions_file must hold captions of at most {len(bucket)} clips; {run.captions_file} holds "
            f"{len(captions)}, so name the dataset that it was written for"
        )
    write_run_description(run, accelerator, data=data_hash(run.data, (run.format,)))
    tokenizer, model = build_model(run, bucket)
    if accelerator.device.type == "cpu":  # SDPA's backward pass on a CPU would take a quarter of a step
        model.net.set_attn_implementation("eager")
    optimizer = build_muon(model.muon_params(), model, run) if run.optimizer == "muon" else build_adamw(model, run)
    model, optimizer = accelerator.prepare(model, optimizer)
    loop = TrainLoop("train upsampler", run, accelerator, {"writer": model, "optimizer": optimizer})
    unwrapped = accelerator.unwrap_model(model)
    clip_of = weighted_sample_order(bucket, run.seed, "upsampler", run.object_count_power)
    clips = [sample % len(held_out) for sample in range(run.validation_pairs)]
    held_out_pairs = [draw_pair(run.seed, held_out, clip, sample) for sample, clip in enumerate(clips)]
    held_out_choices = draw_choices(
        [(held_out.scene(clip), pair) for clip, pair in zip(clips, held_out_pairs, strict=True)]
    )

    for step in loop:
        samples = list(shard_samples(run.batch_size, step, accelerator.process_index, accelerator.num_processes))
        pairs = [draw_pair(run.seed, bucket, clip_of(sample), sample, captions) for sample in samples]
        caption_loss, prompt_loss = pair_losses(model, tokenizer, pairs, accelerator.device)
        choices = draw_choices(
            [(bucket.scene(clip_of(sample)), pair) for sample, pair in zip(samples, pairs, strict=True)]
        )
        # The unwrapped model: processes have different numbers of choices, so their forward passes cannot be paired.
        choice_loss = preference_loss(unwrapped, tokenizer, choices, accelerator.device)
        loss = caption_loss + prompt_loss + choice_loss
        grad_norm = optimizer_step(accelerator, model, optimizer, loss, lr_at(step, run), run.max_grad_norm)
        loop.record(step, grad_norm, caption_loss=caption_loss, prompt_loss=prompt_loss, choice_loss=choice_loss)
        if step % run.validate_every == run.validate_every - 1:
            loop.log(step + 1, validate(unwrapped, tokenizer, held_out_pairs, held_out_choices))

    unwrapped.eval()
    report: dict = validate(unwrapped, tokenizer, held_out_pairs, held_out_choices)
    if accelerator.is_main_process:
        upsampler = TrainedUpsampler(tokenizer, unwrapped.cpu(), build_lexicon_set())
        near_misses = [draw_near_miss(held_out, clip, sample) for sample, clip in enumerate(clips)]
        thresholds = confidence_thresholds(
            upsampler, [(pair.prompt, pair.caption) for pair in held_out_pairs], near_misses
        )
        unwrapped.register_to_config(**thresholds)
        save_upsampler(upsampler, run.out / "upsampler")
        report |= thresholds | {
            "max_prompt_bytes": unwrapped.config.max_prompt_bytes,
            "survival": measure_survival(upsampler, run.evaluation_prompts),
        }
        (run.out / "report.json").write_text(json.dumps(report, indent=2))
    accelerator.end_training()
    return report


def build_model(run: UpsamplerRun, bucket: Bucket) -> tuple[Any, UpsamplerModel]:
    """Return the tokenizer and the model to train: fresh ones, or those in `run.init_from`.

    Raises ValueError if that is not the folder of a trained upsampler.
    """
    if run.init_from is not None:
        trained = load_upsampler(run.init_from)
        if not isinstance(trained, TrainedUpsampler):
            raise ValueError(f"init_from must be the folder of an upsampler trained here; got {run.init_from}")
        return trained.tokenizer, trained.model.train()
    pairs = [draw_pair(run.seed, bucket, clip, clip) for clip in range(min(len(bucket), run.tokenizer_pairs))]
    texts = (text for pair in pairs for text in (pair.prompt, pair.caption))
    tokenizer: Any = train_upsampler_tokenizer(texts, run.vocab_size, run.context_length)
    max_prompt_bytes = int(np.quantile([len(pair.prompt.encode()) for pair in pairs], 1 - OUTLIERS))
    torch.manual_seed(run.seed)
    model = UpsamplerModel(
        len(tokenizer),
        run.context_length,
        run.width,
        run.heads,
        run.layers,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        max_prompt_bytes=max_prompt_bytes,
    )
    return tokenizer, model


def pair_losses(model: nn.Module, tokenizer, pairs: list[PromptPair], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the weighted mean negative log-likelihood per token of captions given prompts, and of prompts.

    Prompts are given their captions, and one in UNCONDITIONAL_EVERY also nothing. Tokens of the meanings that prompt
    and caption share weigh SALIENT_WEIGHT. Texts of similar lengths share a forward pass, to pad little.
    """
    captions, prompts = [], []
    for index, (task, prompt, caption) in enumerate(pairs):
        shared = meanings_of(prompt) & meanings_of(caption)
        captions.append((*sequence_ids(tokenizer, task, prompt, caption), token_weights(tokenizer, caption, shared)))
        prompts.append(
            (*sequence_ids(tokenizer, SHORT_PROMPT, caption, prompt), token_weights(tokenizer, prompt, shared))
        )
        if index % UNCONDITIONAL_EVERY == 0:
            weights = token_weights(tokenizer, prompt, meanings_of(prompt))
            prompts.append((*sequence_ids(tokenizer, SHORT_PROMPT, "", prompt), weights))
    losses = []
    for rows in (captions, prompts):
        rows = sorted(rows, key=lambda row: len(row[0]))
        total = torch.zeros((), device=device)
        for start in range(0, len(rows), FORWARD_ROWS):
            some = rows[start : start + FORWARD_ROWS]
            ids, mask = (part.to(device) for part in pad_rows([row[:2] for row in some], tokenizer.pad_token_id))
            weights = torch.tensor([weight for row in some for weight in row[2]], device=device)
            total = total - (model(ids, mask)[mask] * weights).sum()
        losses.append(total / sum(sum(row[2]) for row in rows))
    return losses[0], losses[1]


def token_weights(tokenizer, text: str, about: frozenset[Meaning]) -> list[float]:
    """Return the loss weight of each token of a text and of its end: SALIENT_WEIGHT for meanings of `about`, else 1."""
    return [SALIENT_WEIGHT if salient else 1.0 for salient in salient_tokens(tokenizer, text, about)] + [1.0]


def preference_loss(model: nn.Module, tokenizer, choices: list[CaptionChoice], device: torch.device) -> Tensor:
    """Return the Bradley-Terry loss of true captions against false ones (as in DPO, arXiv 2305.18290).

    A caption's score is the log-likelihood of the prompt given the caption.
    """
    if not choices:
        return torch.zeros((), device=device)
    rows = [
        sequence_ids(tokenizer, SHORT_PROMPT, caption, prompt)
        for prompt, true, false in choices
        for caption in (true, *false)
    ]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index][0]))
    scores = torch.empty(len(rows), device=device)
    for start in range(0, len(rows), FORWARD_ROWS):
        some = order[start : start + FORWARD_ROWS]
        ids, mask = (part.to(device) for part in pad_rows([rows[index] for index in some], tokenizer.pad_token_id))
        scores[some] = model(ids, mask).sum(1)
    by_choice = scores.split([1 + len(choice.false_captions) for choice in choices])
    return torch.cat([nn.functional.softplus(one[1:] - one[0]) for one in by_choice]).mean()


@torch.no_grad()
def validate(
    model: UpsamplerModel, tokenizer, pairs: list[PromptPair], choices: list[CaptionChoice]
) -> dict[str, float]:
    """Return the losses over held-out pairs and choices."""
    caption_loss, prompt_loss = pair_losses(model, tokenizer, pairs, model.device)
    choice_loss = preference_loss(model, tokenizer, choices, model.device)
    return {
        "validation_caption_loss": float(caption_loss),
        "validation_prompt_loss": float(prompt_loss),
        "validation_choice_loss": float(choice_loss),
    }


def confidence_thresholds(
    upsampler: TrainedUpsampler, true: list[tuple[str, str]], false: list[tuple[str, str]]
) -> dict[str, float]:
    """Return the thresholds above which a caption is trusted for a prompt with unknown words.

    `true` and `false` are (prompt, caption). `min_log_prob` is for the least likely token of the prompt given the
    caption: all but OUTLIERS of the true pairs reach it. `min_gain` is for what each token gains from the caption: all
    but OUTLIERS of the true pairs reach it, or more, so that at most OUTLIERS of the false ones do.
    """
    true_scores, false_scores = (
        torch.cat(
            [upsampler.confidence(prompt, upsampler.prompt_log_probs(prompt, [caption])) for prompt, caption in pairs]
        ).numpy()
        for pairs in (true, false)
    )
    min_log_prob, min_gain = np.quantile(true_scores, OUTLIERS, axis=0)
    min_gain = max(min_gain, np.quantile(false_scores[:, 1], 1 - OUTLIERS))
    return {"min_log_prob": math.floor(min_log_prob * 1000) / 1000, "min_gain": math.ceil(min_gain * 1000) / 1000}
