"""What a text encoder keeps of a caption: linear classifiers of each attribute on the mean of its token embeddings.

    python -m training.evaluation.probe app/models/first --data data/second-test

Probes read every layer, from the raw token embeddings on (Alain and Bengio 2016, arXiv 1610.01644). A layer that does
not keep an attribute is at chance there, the share of the most frequent value. MODEL is a model folder or a text
encoder of transformers.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioning.prompt_encoder import PromptEncoder
from captioning.text_encoder import TextTower, load_text_encoder, tokenize
from training.dataset import Bucket, select_captions
from training.world.facts import attributes
from training.world.scene import Scene
from training.world.words import read_caption

BAR = 0.95  # of captions, which an encoder should reach for every attribute
# Of the subject: probed where it is the only thing, as a mean over tokens cannot bind them to one of several.
THING_ATTRIBUTES = ("colour", "shape", "size", "material")
PROBED_ATTRIBUTES = (*THING_ATTRIBUTES, "event", "direction", "speed", "camera")
PROBED_ATTRIBUTES += ("ground", "wetness", "sky", "time", "count")
BATCH = 32  # captions encoded at once
TEST_SHARE = 0.25
LEAST_CAPTIONS = 40  # an attribute that fewer captions name is not probed
PENALTY = 1e-4  # of the squared weights


@dataclass(frozen=True)
class Probe:
    """The accuracy on held-out captions, that of guessing their most frequent value, and the number of captions."""

    accuracy: float
    chance: float
    captions: int


def caption_labels(text: str, scene: Scene) -> dict[str, str]:
    """Return the values of the probed attributes that a caption names."""
    stated, truth = read_caption(text), attributes(scene)
    alone = len(scene.things) == 1
    return {
        name: truth[name]
        for name in PROBED_ATTRIBUTES
        if stated.get(name) == {truth.get(name)} and (alone or name not in THING_ATTRIBUTES)
    }


@torch.no_grad()
def layer_means(texts: Sequence[str], tokenizer, encoder: nn.Module) -> dict[str, Tensor]:
    """Return the mean token embedding (B, D) of each text after each layer: "embedding", "layer 1", ..., "output"."""
    found: dict[str, list[Tensor]] = {}
    for start in range(0, len(texts), BATCH):
        ids, counts = tokenize(tokenizer, list(texts[start : start + BATCH]), truncate=True)
        device = next(encoder.parameters()).device
        mask = (torch.arange(ids.shape[1]) < torch.tensor(counts)[:, None]).to(device)
        weight = mask[..., None].float()
        for name, states in _layer_states(ids.to(device), mask, encoder).items():
            found.setdefault(name, []).append(((states.float() * weight).sum(1) / weight.sum(1)).cpu())
    return {name: torch.cat(values) for name, values in found.items()}


def _layer_states(ids: Tensor, mask: Tensor, encoder: nn.Module) -> dict[str, Tensor]:
    """Return the token embeddings (B, L, D) after each layer."""
    if not isinstance(encoder, PromptEncoder | TextTower):
        output = encoder(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
        hidden = output.hidden_states[:-1]
        return _layer_names(hidden) | {"output": output.last_hidden_state}
    tower: Any = encoder.tower if isinstance(encoder, TextTower) else encoder
    blocks = tower.transformer.resblocks if isinstance(encoder, TextTower) else tower.blocks
    states: list[Tensor] = []

    def keep(module, inputs, output) -> None:
        states.append(output)

    hooks = [module.register_forward_hook(keep) for module in (tower.token_embedding, *blocks)]
    try:
        output = encoder(ids) if isinstance(encoder, TextTower) else encoder(ids, mask)
    finally:
        for hook in hooks:
            hook.remove()
    return _layer_names(states) | {"output": output[0]}


def _layer_names(states: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"layer {index}" if index else "embedding": value for index, value in enumerate(states)}


def fit_probe(features: Tensor, labels: Sequence[str], groups: Sequence[int], seed: int = 0) -> Probe:
    """Fit a logistic regression of labels (N) on features (N, D), and test it on held-out groups.

    Captions of one clip are one group, so that no clip is in both parts. Labels that training lacks count as wrong.
    """
    rng = np.random.default_rng([seed, 10])
    clips = rng.permutation(sorted(set(groups)))
    held_out = set(clips[: max(1, round(TEST_SHARE * len(clips)))].tolist())
    test = torch.tensor([group in held_out for group in groups])
    classes = sorted({label for label, held in zip(labels, test.tolist(), strict=True) if not held})
    targets = torch.tensor([classes.index(label) if label in classes else -1 for label in labels])
    mean, deviation = features[~test].mean(0), features[~test].std(0) + 1e-6
    x = (features - mean) / deviation
    layer = nn.Linear(x.shape[1], len(classes))
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(x[~test]), targets[~test]) + PENALTY * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        right = layer(x[test]).argmax(1) == targets[test]
    usual = Counter(targets[test].tolist()).most_common(1)[0][1]
    return Probe(float(right.double().mean()), usual / int(test.sum()), int(test.sum()))


def probe_encoder(
    tokenizer, encoder: nn.Module, bucket: Bucket, clips: int = 400, probed: Sequence[str] = PROBED_ATTRIBUTES
) -> dict[str, dict[str, Probe]]:
    """Return a probe by attribute in `probed` and by layer, on the English captions of a bucket's first clips.

    Attributes that fewer than LEAST_CAPTIONS captions name, or that have one value, are left out.
    """
    texts, labels, groups = [], [], []
    for clip in range(min(clips, len(bucket))):
        scene = bucket.scene(clip)
        for kind in ("plain", "dense"):
            for text in select_captions(bucket.captions[clip], kind):
                texts.append(text)
                labels.append(caption_labels(text, scene))
                groups.append(clip)
    features = layer_means(texts, tokenizer, encoder)
    found: dict[str, dict[str, Probe]] = {}
    for name in probed:
        chosen = [index for index, label in enumerate(labels) if name in label]
        values = [labels[index][name] for index in chosen]
        if len(chosen) >= LEAST_CAPTIONS and len(set(values)) > 1:
            own = [groups[index] for index in chosen]
            found[name] = {layer: fit_probe(means[chosen], values, own) for layer, means in features.items()}
    return found


def below_bar(found: dict[str, dict[str, Probe]], bar: float = BAR) -> dict[str, float]:
    """Return the attributes that the encoder's output keeps in a smaller share of captions, with that share."""
    shares = {name: layers["output"].accuracy for name, layers in found.items()}
    return {name: share for name, share in shares.items() if share < bar}


def table(found: dict[str, dict[str, Probe]]) -> str:
    """Format probes as a Markdown table in percent, a row per attribute."""
    layers = list(next(iter(found.values())))
    lines = ["| attribute | chance | " + " | ".join(layers) + " |", "|---" * (len(layers) + 2) + "|"]
    for name, row in found.items():
        shares = [row[layers[0]].chance, *(row[layer].accuracy for layer in layers)]
        lines.append(f"| {name} | " + " | ".join(f"{100 * share:.0f}" for share in shares) + " |")
    return "\n".join(lines)


def main(args: list[str] | None = None) -> None:
    """Print the table of a text encoder, and what is below the bar."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluation.probe", description=__doc__)
    parser.add_argument("model", help="a model folder, or a text encoder of transformers")
    parser.add_argument("--data", type=Path, required=True, help="clips of the world, such as data/second-test")
    parser.add_argument("--clips", type=int, default=400, help="how many of the first clips (default 400)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    arguments = parser.parse_args(args)
    bucket = next(Bucket(path.parent) for path in sorted(arguments.data.glob("*/state.json")))
    found = probe_encoder(*load_text_encoder(arguments.model), bucket, arguments.clips)
    print(table(found))
    low = below_bar(found)
    print(f"below {BAR:.0%}: " + (", ".join(f"{name} {share:.1%}" for name, share in low.items()) or "nothing"))
    if arguments.json:
        numbers = {name: {layer: vars(one) for layer, one in row.items()} for name, row in found.items()}
        arguments.json.write_text(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
