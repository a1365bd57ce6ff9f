"""Our own captioner: a CoCa (Yu et al. 2022, arXiv 2205.01917) that watches clips.

open_clip's CoCa, text tower, poolers and decoder; made for video by attentional pooling over the tokens of all frames
(VideoCoCa, Yan et al. 2022, arXiv 2212.04979). Its text tower is the one that the diffusion transformer reads with.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn

from captioning.captioner import Caption, evenly
from captioning.text_encoder import TextTower, capitalize_sentences, load_tokenizer, tokenize
from captioning.video_encoder import Within, watching
from vae.weights import hash_of_file, load_strictly, weights_in

SEEN = (9, 64, 64)  # frames, rows, columns: what our own watches of a clip
FILES = ("captioner", "tokenizer")
FRAMES = 8  # of a clip that a checkpoint made for pictures watches


class VideoCoCa(ModelMixin, ConfigMixin):
    """open_clip's CoCa behind eyes for clips: our own, or those of any of its CoCa architectures by name."""

    @register_to_config
    def __init__(
        self,
        architecture: str = "",
        vocabulary: int = 2048,
        context: int = 128,
        width: int = 128,
        heads: int = 4,
        layers: int = 4,
        decoder_layers: int = 3,
        watcher_width: int = 48,
        watcher_layers: int = 2,
        queries: int = 32,
        end_id: int = 1,
        pad_id: int = 0,
    ):
        super().__init__()
        import open_clip
        from open_clip.coca_model import CLIPTextCfg, CLIPVisionCfg, MultimodalCfg

        if architecture:
            self.coca: Any = open_clip.create_model(architecture)
            self.coca.visual = FrameByFrame(self.coca.visual)
            return
        self.coca = open_clip.CoCa(
            width,
            MultimodalCfg(context_length=context, width=width, heads=heads, layers=decoder_layers),
            CLIPTextCfg(context_length=context, vocab_size=vocabulary, width=width, heads=heads, layers=1),
            CLIPVisionCfg(image_size=8, patch_size=8, width=width, head_width=width, layers=1),
            pad_id=pad_id,
        )  # of which only the decoder stays
        self.coca.visual = Watcher(watcher_width, watcher_layers, width, heads, queries)
        self.coca.text = Text(TextTower(vocabulary, context, width, heads, layers, end_id, pad_id))
        # open_clip leaves this one as the memory was: its init_parameters fails for a decoder.
        nn.init.normal_(self.coca.text_decoder.text_projection, std=width**-0.5)

    @classmethod
    def from_open_clip(cls, architecture: str, weights: str) -> VideoCoCa:
        """Begin from one of open_clip's CoCa checkpoints, by its name there or a file's.

        Raises ValueError for an architecture or weights that open_clip does not have.
        """
        import open_clip

        known = [name for name in open_clip.list_models() if "coca" in name]
        if architecture not in known or not weights:
            rule = f"a start must be one of open_clip's CoCa models ({', '.join(known)}) and its weights"
            raise ValueError(f"{rule}, as NAME:WEIGHTS; got {architecture!r} and {weights!r}")
        try:
            trained: Any = open_clip.create_model(architecture, pretrained=weights)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"open_clip must have the weights {weights!r} of {architecture}: {error}") from error
        model = cls(architecture=architecture)
        trained.visual = FrameByFrame(trained.visual)
        model.coca = trained
        return model

    def forward(self, pixels: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """Return what open_clip's CoCaLoss wants of clips (B, 3, F, Y, X) in [-1, 1] and their captions' ids (B, L)."""
        return self.coca(pixels, ids)

    def muon_params(self) -> list[tuple[nn.Module | nn.Parameter, int]]:
        """List the matrices that Muon steps on: those of attention as the three that they are."""
        found: list[tuple[nn.Module | nn.Parameter, int]] = []
        for module in self.modules():
            if isinstance(module, nn.MultiheadAttention):
                found.append((module.out_proj, 1))
                if module.in_proj_weight is not None:
                    found.append((module.in_proj_weight, 3))
            elif isinstance(module, nn.Conv2d) or (isinstance(module, nn.Linear) and not _is_out(module)):
                found.append((module, 1))
        return found

    @torch.no_grad()
    def write(self, pixels: Tensor, start_id: int, end_id: int, most: int) -> list[list[int]]:
        """Return the most likely caption of every clip (B, 3, F, Y, X), word by word, as at most `most` token ids.

        open_clip's own `generate` needs classes that transformers 5 dropped.
        """
        latent, seen = self.coca._encode_image(pixels)
        ids = torch.full((len(pixels), 1), start_id, device=pixels.device)
        ended = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
        spoken: dict[nn.Module, Tensor] = {}
        while not ended.all() and ids.shape[1] < most:
            if isinstance(self.coca.text, Text):
                logits = self._next(ids, seen, spoken)
            else:
                found = self.coca(pixels, ids, image_latent=latent, image_embs=seen, output_labels=False)
                logits = found["logits"][:, -1]
            following = logits.argmax(1).where(~ended, end_id)
            ids = torch.cat([ids, following[:, None]], dim=1)
            ended |= following == end_id
        return [[word for word in row if word not in (start_id, end_id)] for row in ids.tolist()]

    def _next(self, ids: Tensor, seen: Tensor, spoken: dict[nn.Module, Tensor]) -> Tensor:
        """Return the logits (B, V) behind captions begun (B, L), of which all but the last word was asked for before;
        what each block then attended to is kept in `spoken`. `seen` is what the decoder reads of the clips.
        """
        tower, decoder = self.coca.text.tower.tower, self.coca.text_decoder
        x = tower.token_embedding(ids[:, -1:]) + tower.positional_embedding[ids.shape[1] - 1]
        for block in tower.transformer.resblocks:
            x = _spoken_on(block, x, spoken)
        x = tower.ln_final(x)
        for block, looking in zip(decoder.resblocks, decoder.cross_attn, strict=True):
            x = looking(_spoken_on(block, x, spoken), k_x=seen, v_x=seen)
        return decoder.ln_final(x[:, -1]) @ decoder.text_projection


def _spoken_on(block: Any, x: Tensor, spoken: dict[nn.Module, Tensor]) -> Tensor:
    """Return what one of open_clip's causal blocks makes of the newest position (B, 1, D) of many."""
    before = [spoken[block]] if block in spoken else []
    spoken[block] = torch.cat([*before, block.ln_1(x)], dim=1)
    x = x + block.ls_1(block.attention(spoken[block][:, -1:], spoken[block], spoken[block]))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _is_out(module: nn.Linear) -> bool:
    """Say whether a layer is the last one of attention, which is listed with it."""
    return isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)


class Watcher(nn.Module):
    """Convolutions over frames, open_clip's transformer over all their places, and CoCa's two poolers in a cascade."""

    def __init__(self, width: int, layers: int, output_width: int, heads: int, queries: int):
        super().__init__()
        from open_clip.transformer import AttentionalPooler, Transformer

        inner = 3 * width
        self.enter, self.stages = Within(3, width, 8, 4), watching(width)
        frames, rows, columns = SEEN
        places = (frames, rows // 16, columns // 16)
        self.places = nn.ParameterList(nn.Parameter(0.02 * torch.randn(count, inner)) for count in places)
        self.transformer = Transformer(inner, layers, inner // 48)
        self.pool = AttentionalPooler(output_width, inner, n_head=heads, n_queries=queries)
        self.pool_once = AttentionalPooler(output_width, output_width, n_head=heads, n_queries=1)
        self.exit = nn.Linear(output_width, output_width, bias=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return one vector a clip (B, D) and what the decoder reads of it (B, queries, D), of pixels (B, 3, F, Y, X)
        in [-1, 1].
        """
        pixels = resized(pixels, SEEN)
        x = self.stages(self.enter(rearrange(pixels, "B rgb F Y X -> B F rgb Y X")))
        time, row, column = self.places
        x = rearrange(x, "B F D H W -> B F H W D") + time[:, None, None] + row[:, None] + column
        tokens = self.pool(self.transformer(rearrange(x, "B F H W D -> B (F H W) D")))
        return self.exit(self.pool_once(tokens)[:, 0]), tokens


class Text(nn.Module):
    """Our text tower, answering in the order in which CoCa asks."""

    def __init__(self, tower: TextTower):
        super().__init__()
        self.tower = tower

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return pooled vectors (B, D) and features (B, L, D) of token ids (B, L)."""
        features, pooled = self.tower(ids)
        return pooled, features


class FrameByFrame(nn.Module):
    """An open_clip vision tower made for pictures, which sees every frame alone and pools over the tokens of all.

    What tells frames apart begins at zero, so that a clip of one picture is at first that picture to it.
    """

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual
        self.times = nn.Parameter(torch.zeros(FRAMES, visual.class_embedding.shape[0]))  # type: ignore[union-attr]
        mean, deviation = (torch.tensor(visual.preprocess_cfg[name]) for name in ("mean", "std"))  # type: ignore[index]
        self.register_buffer("mean", mean[:, None, None], persistent=False)
        self.register_buffer("deviation", deviation[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return one vector a clip (B, D) and its pooled tokens (B, N, D), of pixels (B, 3, F, Y, X) in [-1, 1]."""
        clips, visual = len(pixels), self.visual
        x = resized(pixels, (FRAMES, *visual.image_size))  # type: ignore[misc]
        x = rearrange(x / 2 + 0.5, "B rgb F Y X -> (B F) rgb Y X")
        x = visual.transformer(visual._embeds((x - self.mean) / self.deviation))  # type: ignore[operator]
        x = rearrange(x, "(B F) N D -> B F N D", B=clips) + self.times[:, None]
        pooled, tokens = visual._pool(rearrange(x, "B F N D -> B (F N) D"))  # type: ignore[operator]
        return pooled if visual.proj is None else pooled @ visual.proj, tokens


class CoCaCaptioner:
    """A VideoCoCa with its tokenizer: describes clips, and says how well a text fits one."""

    def __init__(self, model: VideoCoCa, tokenizer, version: str = "untrained"):
        self.model, self.tokenizer, self.version = model.eval(), tokenizer, version
        self.name = f"longtake {model.config.architecture or 'captioner'}"  # type: ignore[attr-defined]

    def describe(self, video: Tensor) -> Caption:
        """Describe a clip or picture (3, F, Y, X) in [-1, 1]."""
        return Caption(self.write(video[None])[0], {})

    def write(self, videos: Tensor) -> list[str]:
        """Return a caption of each clip (B, 3, F, Y, X) in [-1, 1]."""
        videos, words = videos.to(self.model.device), self.tokenizer
        found = self.model.write(videos, words.bos_token_id, words.eos_token_id, words.model_max_length)
        return [capitalize_sentences(words.decode(ids)) for ids in found]

    @torch.no_grad()
    def seen(self, videos: Tensor) -> Tensor:
        """Return where clips (B, 3, F, Y, X) in [-1, 1] lie, as vectors (B, D) of length 1, on the CPU."""
        return self.model.coca._encode_image(videos.to(self.model.device))[0].cpu()

    @torch.no_grad()
    def meant(self, texts: list[str]) -> Tensor:
        """Return where texts lie, as vectors (texts, D) of length 1, on the CPU; a long one is cut."""
        ids, _ = tokenize(self.tokenizer, texts, truncate=True)
        return self.model.coca._encode_text(ids.to(self.model.device))[0].cpu()

    def match(self, videos: Tensor, texts: list[str]) -> Tensor:
        """Return the cosines (B, texts) between clips (B, 3, F, Y, X) in [-1, 1] and texts: which says what is seen."""
        return self.seen(videos) @ self.meant(texts).T

    def save(self, folder: Path) -> None:
        """Write model and tokenizer under a folder."""
        self.model.save_pretrained(folder / FILES[0])
        if not isinstance(self.tokenizer, OpenClipWords):
            self.tokenizer.save_pretrained(folder / FILES[1])


class OpenClipWords(SimpleNamespace):
    """open_clip's tokenizer with the parts of a transformers tokenizer that are used here."""

    def __init__(self, architecture: str):
        import open_clip

        whole: Any = open_clip.get_tokenizer(architecture)
        super().__init__(
            whole=whole,
            bos_token_id=whole.sot_token_id,
            eos_token_id=whole.eot_token_id,
            pad_token_id=0,
            model_max_length=whole.context_length - 1,  # CoCa adds a token of its own
        )

    def __call__(self, text: str, **_) -> dict[str, list[int]]:
        return {"input_ids": [self.bos_token_id, *self.whole.encode(text), self.eos_token_id]}

    def decode(self, ids: list[int]) -> str:
        return self.whole.decode(ids)


def resized(videos: Tensor, seen: tuple[int, int, int]) -> Tensor:
    """Return clips (B, 3, F, Y, X) at the size that is watched: frames spread over the clip, pixels averaged."""
    frames, rows, columns = seen
    videos = videos[:, :, evenly(videos.shape[2], frames)]
    if videos.shape[3:] == (rows, columns):
        return videos
    flat = rearrange(videos, "B rgb F Y X -> (B F) rgb Y X")
    flat = F.interpolate(flat, (rows, columns), mode="bilinear", antialias=True, align_corners=False)
    return rearrange(flat, "(B F) rgb Y X -> B rgb F Y X", F=frames)


def load_coca(folder: str | Path) -> CoCaCaptioner:
    """Load a captioner from its folder. Raises WeightsError where it is absent or damaged."""
    folder = Path(folder)
    model = load_strictly(VideoCoCa, folder / FILES[0])
    architecture = model.config.architecture  # type: ignore[attr-defined]
    words = OpenClipWords(architecture) if architecture else load_tokenizer(folder / FILES[1])
    return CoCaCaptioner(model, words, hash_of_file(*weights_in(folder / FILES[0]))[:8])
