"""The captioner trained here: a CoCa (Yu et al. 2022, arXiv 2205.01917) for video.

open_clip's CoCa with its text tower, poolers and decoder, extended to video by attentional pooling over the tokens of
all frames (VideoCoCa, Yan et al. 2022, arXiv 2212.04979). It shares its text tower with the diffusion transformer.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn

from captioning.caption import COCA_FOLDER, VideoCaption, even_indices
from captioning.text_encoder import TextTower, capitalize_sentences, load_tokenizer, tokenize
from captioning.video_encoder import FrameConv, conv_stages
from vae.weights import hash_of_file, load_strictly, weights_in

INPUT_SHAPE = (9, 64, 64)  # frames, rows, columns that `VideoEncoder` takes
SUBFOLDERS = (COCA_FOLDER, "tokenizer")
ENCODER_FRAMES = 8  # frames that `PerFrameEncoder` takes, which was trained on images


class VideoCoCa(ModelMixin, ConfigMixin):
    """open_clip's CoCa with a video encoder: a small one trained here, or that of an `architecture` of open_clip."""

    old_config_names: ClassVar = {"watcher_width": "video_width", "watcher_layers": "video_layers"}
    old_weight_names: ClassVar = {
        "coca.visual.enter.mix": "coca.visual.stem.conv",
        "coca.visual.enter": "coca.visual.stem",
        "coca.visual.stages.*.mix": "coca.visual.stages.*.conv",
        "coca.visual.places": "coca.visual.pos_embed",
        "coca.visual.pool": "coca.visual.attn_pool",
        "coca.visual.pool_once": "coca.visual.attn_pool_contrastive",
        "coca.visual.exit": "coca.visual.proj",
        "coca.visual.times": "coca.visual.frame_embed",
    }

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
        video_width: int = 48,
        video_layers: int = 2,
        queries: int = 32,
        end_id: int = 1,
        pad_id: int = 0,
    ):
        super().__init__()
        import open_clip
        from open_clip.coca_model import CLIPTextCfg, CLIPVisionCfg, MultimodalCfg

        if architecture:
            self.coca: Any = open_clip.create_model(architecture)
            self.coca.visual = PerFrameEncoder(self.coca.visual)
            return
        self.coca = open_clip.CoCa(
            width,
            MultimodalCfg(context_length=context, width=width, heads=heads, layers=decoder_layers),
            CLIPTextCfg(context_length=context, vocab_size=vocabulary, width=width, heads=heads, layers=1),
            CLIPVisionCfg(image_size=8, patch_size=8, width=width, head_width=width, layers=1),
            pad_id=pad_id,
        )  # only its decoder is kept
        self.coca.visual = VideoEncoder(video_width, video_layers, width, heads, queries)
        self.coca.text = CoCaText(TextTower(vocabulary, context, width, heads, layers, end_id, pad_id))
        # open_clip leaves this parameter uninitialized, because its init_parameters fails for a decoder.
        nn.init.normal_(self.coca.text_decoder.text_projection, std=width**-0.5)

    @classmethod
    def from_open_clip(cls, architecture: str, weights: str) -> VideoCoCa:
        """Load a CoCa checkpoint of open_clip, by its name there or by file.

        Raises ValueError if open_clip does not have the architecture or the weights.
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
        trained.visual = PerFrameEncoder(trained.visual)
        model.coca = trained
        return model

    def forward(self, pixels: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """Return the inputs of open_clip's CoCaLoss for clips (B, 3, F, Y, X) in [-1, 1] and caption ids (B, L)."""
        return self.coca(pixels, ids)

    def muon_params(self) -> list[tuple[nn.Module | nn.Parameter, int]]:
        """List the matrices that Muon updates, each with the number of matrices stacked in it (3 for Q, K and V)."""
        found: list[tuple[nn.Module | nn.Parameter, int]] = []
        for module in self.modules():
            if isinstance(module, nn.MultiheadAttention):
                found.append((module.out_proj, 1))
                if module.in_proj_weight is not None:
                    found.append((module.in_proj_weight, 3))
            elif isinstance(module, nn.Conv2d) or (isinstance(module, nn.Linear) and not _is_attention_output(module)):
                found.append((module, 1))
        return found

    @torch.no_grad()
    def generate(self, pixels: Tensor, start_id: int, end_id: int, max_tokens: int) -> list[list[int]]:
        """Decode a caption of every clip (B, 3, F, Y, X) greedily; return at most `max_tokens` token ids each.

        open_clip's own `generate` needs classes that transformers 5 removed.
        """
        latent, image_tokens = self.coca._encode_image(pixels)
        ids = torch.full((len(pixels), 1), start_id, device=pixels.device)
        ended = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
        cache: dict[nn.Module, Tensor] = {}
        while not ended.all() and ids.shape[1] < max_tokens:
            if isinstance(self.coca.text, CoCaText):
                logits = self._next_logits(ids, image_tokens, cache)
            else:
                output = self.coca(pixels, ids, image_latent=latent, image_embs=image_tokens, output_labels=False)
                logits = output["logits"][:, -1]
            next_ids = logits.argmax(1).where(~ended, end_id)
            ids = torch.cat([ids, next_ids[:, None]], dim=1)
            ended |= next_ids == end_id
        return [[token for token in row if token not in (start_id, end_id)] for row in ids.tolist()]

    def _next_logits(self, ids: Tensor, image_tokens: Tensor, cache: dict[nn.Module, Tensor]) -> Tensor:
        """Return the logits (B, V) of the token after ids (B, L), given the clips' tokens.

        Only the last position is computed: `cache` holds the attention inputs of earlier positions, by block.
        """
        tower, decoder = self.coca.text.tower.tower, self.coca.text_decoder
        x = tower.token_embedding(ids[:, -1:]) + tower.positional_embedding[ids.shape[1] - 1]
        for block in tower.transformer.resblocks:
            x = _cached_block(block, x, cache)
        x = tower.ln_final(x)
        for block, cross_attention in zip(decoder.resblocks, decoder.cross_attn, strict=True):
            x = cross_attention(_cached_block(block, x, cache), k_x=image_tokens, v_x=image_tokens)
        return decoder.ln_final(x[:, -1]) @ decoder.text_projection


def _cached_block(block: Any, x: Tensor, cache: dict[nn.Module, Tensor]) -> Tensor:
    """Run a causal block of open_clip for the newest position (B, 1, D), with earlier positions from the cache."""
    earlier = [cache[block]] if block in cache else []
    cache[block] = torch.cat([*earlier, block.ln_1(x)], dim=1)
    x = x + block.ls_1(block.attention(cache[block][:, -1:], cache[block], cache[block]))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _is_attention_output(module: nn.Linear) -> bool:
    """Tell whether a layer is the output projection of an attention, which is listed with that attention."""
    return isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)


class VideoEncoder(nn.Module):
    """Convolutions over frames, open_clip's transformer over all positions, and CoCa's two cascaded poolers."""

    def __init__(self, width: int, layers: int, output_width: int, heads: int, queries: int):
        super().__init__()
        from open_clip.transformer import AttentionalPooler, Transformer

        inner = 3 * width
        self.stem, self.stages = FrameConv(3, width, 8, 4), conv_stages(width)
        frames, rows, columns = INPUT_SHAPE
        grid = (frames, rows // 16, columns // 16)
        self.pos_embed = nn.ParameterList(nn.Parameter(0.02 * torch.randn(count, inner)) for count in grid)
        self.transformer = Transformer(inner, layers, inner // 48)
        self.attn_pool = AttentionalPooler(output_width, inner, n_head=heads, n_queries=queries)
        self.attn_pool_contrastive = AttentionalPooler(output_width, output_width, n_head=heads, n_queries=1)
        self.proj = nn.Linear(output_width, output_width, bias=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return one vector per clip (B, D) and the tokens that the decoder attends to (B, queries, D), of pixels (B,
        3, F, Y, X) in [-1, 1].
        """
        pixels = resize_clips(pixels, INPUT_SHAPE)
        x = self.stages(self.stem(rearrange(pixels, "B rgb F Y X -> B F rgb Y X")))
        time, row, column = self.pos_embed
        x = rearrange(x, "B F D H W -> B F H W D") + time[:, None, None] + row[:, None] + column
        tokens = self.attn_pool(self.transformer(rearrange(x, "B F H W D -> B (F H W) D")))
        return self.proj(self.attn_pool_contrastive(tokens)[:, 0]), tokens


class CoCaText(nn.Module):
    """Return the outputs of a `TextTower` in the order that open_clip's CoCa expects."""

    def __init__(self, tower: TextTower):
        super().__init__()
        self.tower = tower

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return pooled vectors (B, D) and token embeddings (B, L, D) of token ids (B, L)."""
        embeddings, pooled = self.tower(ids)
        return pooled, embeddings


class PerFrameEncoder(nn.Module):
    """A vision tower of open_clip, trained on images: encodes each frame alone and pools over the tokens of all frames.

    The frame embeddings start at zero, so that before training a clip of equal frames is encoded as its image.
    """

    def __init__(self, visual: Any):
        super().__init__()
        self.visual = visual
        self.frame_embed = nn.Parameter(torch.zeros(ENCODER_FRAMES, visual.class_embedding.shape[0]))
        mean, std = (torch.tensor(visual.preprocess_cfg[name]) for name in ("mean", "std"))
        self.register_buffer("mean", mean[:, None, None], persistent=False)
        self.register_buffer("std", std[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return one vector per clip (B, D) and its pooled tokens (B, N, D), of pixels (B, 3, F, Y, X) in [-1, 1]."""
        clips, visual = len(pixels), self.visual
        x = resize_clips(pixels, (ENCODER_FRAMES, *visual.image_size))  # type: ignore[misc]
        x = rearrange(x / 2 + 0.5, "B rgb F Y X -> (B F) rgb Y X")
        x = visual.transformer(visual._embeds((x - self.mean) / self.std))  # type: ignore[operator]
        x = rearrange(x, "(B F) N D -> B F N D", B=clips) + self.frame_embed[:, None]
        pooled, tokens = visual._pool(rearrange(x, "B F N D -> B (F N) D"))  # type: ignore[operator]
        return pooled if visual.proj is None else pooled @ visual.proj, tokens


class CoCaCaptioner:
    """A VideoCoCa with its tokenizer: captions clips, and scores how well texts match them."""

    def __init__(self, model: VideoCoCa, tokenizer, version: str = "untrained"):
        self.model, self.tokenizer, self.version = model.eval(), tokenizer, version
        self.name = f"longtake {model.config.architecture or 'captioner'}"  # type: ignore[attr-defined]

    def describe(self, video: Tensor) -> VideoCaption:
        """Caption a clip or image (3, F, Y, X) in [-1, 1]."""
        return VideoCaption(self.caption_batch(video[None])[0], {})

    def caption_batch(self, videos: Tensor) -> list[str]:
        """Return a caption of each clip (B, 3, F, Y, X) in [-1, 1]."""
        videos, tokenizer = videos.to(self.model.device), self.tokenizer
        start_id, end_id, max_tokens = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.model_max_length
        rows = self.model.generate(videos, start_id, end_id, max_tokens)
        return [capitalize_sentences(tokenizer.decode(ids)) for ids in rows]

    @torch.no_grad()
    def encode_videos(self, videos: Tensor) -> Tensor:
        """Embed clips (B, 3, F, Y, X) in [-1, 1] as unit vectors (B, D), on the CPU."""
        return self.model.coca._encode_image(videos.to(self.model.device))[0].cpu()

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> Tensor:
        """Embed texts as unit vectors (texts, D), on the CPU; texts over the token limit are truncated."""
        ids, _ = tokenize(self.tokenizer, texts, truncate=True)
        return self.model.coca._encode_text(ids.to(self.model.device))[0].cpu()

    def match(self, videos: Tensor, texts: list[str]) -> Tensor:
        """Return the cosine similarities (B, texts) of clips (B, 3, F, Y, X) in [-1, 1] and texts."""
        return self.encode_videos(videos) @ self.encode_texts(texts).T

    def save(self, folder: Path) -> None:
        """Save model and tokenizer under a folder."""
        self.model.save_pretrained(folder / SUBFOLDERS[0])
        if not isinstance(self.tokenizer, OpenClipTokenizer):
            self.tokenizer.save_pretrained(folder / SUBFOLDERS[1])


class OpenClipTokenizer(SimpleNamespace):
    """Give open_clip's tokenizer the parts of the transformers interface that are used here."""

    def __init__(self, architecture: str):
        import open_clip

        tokenizer: Any = open_clip.get_tokenizer(architecture)
        super().__init__(
            tokenizer=tokenizer,
            bos_token_id=tokenizer.sot_token_id,
            eos_token_id=tokenizer.eot_token_id,
            pad_token_id=0,
            model_max_length=tokenizer.context_length - 1,  # CoCa appends a token of its own
        )

    def __call__(self, text: str, **_) -> dict[str, list[int]]:
        return {"input_ids": [self.bos_token_id, *self.tokenizer.encode(text), self.eos_token_id]}

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)


def resize_clips(videos: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Resample clips (B, 3, F, Y, X) to (frames, rows, columns): evenly spaced frames, antialiased bilinear pixels."""
    frames, rows, columns = shape
    videos = videos[:, :, even_indices(videos.shape[2], frames)]
    if videos.shape[3:] == (rows, columns):
        return videos
    flat = rearrange(videos, "B rgb F Y X -> (B F) rgb Y X")
    flat = F.interpolate(flat, (rows, columns), mode="bilinear", antialias=True, align_corners=False)
    return rearrange(flat, "(B F) rgb Y X -> B rgb F Y X", F=frames)


def load_coca(folder: str | Path) -> CoCaCaptioner:
    """Load a captioner from its folder. Raises WeightsError if it is missing or damaged."""
    folder = Path(folder)
    model = load_strictly(VideoCoCa, folder / SUBFOLDERS[0])
    architecture = model.config.architecture  # type: ignore[attr-defined]
    tokenizer = OpenClipTokenizer(architecture) if architecture else load_tokenizer(folder / SUBFOLDERS[1])
    return CoCaCaptioner(model, tokenizer, hash_of_file(*weights_in(folder / SUBFOLDERS[0]))[:8])
