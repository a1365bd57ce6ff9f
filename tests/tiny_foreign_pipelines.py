"""Tiny diffusers pipelines of classes for which there is no family, with random weights."""

from __future__ import annotations

import diffusers

from tests.tiny_pipelines import t5, tokenizer, wan_vae


def allegro():
    """Text-to-video with its own text limit and a scheduler without flow matching."""
    vae = diffusers.AutoencoderKLAllegro(
        in_channels=3,
        out_channels=3,
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    vae.enable_tiling()
    transformer = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        cross_attention_dim=24,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        caption_channels=32,
    )
    return diffusers.AllegroPipeline(
        tokenizer=tokenizer(), text_encoder=t5(), vae=vae, scheduler=diffusers.DDIMScheduler(), transformer=transformer
    )


def sana():
    """A pipeline whose number of frames has another name."""
    from transformers import Gemma2Config, Gemma2Model

    transformer = diffusers.SanaVideoTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=8,
        mlp_ratio=2.5,
        dropout=0.0,
        attention_bias=False,
        sample_size=8,
        patch_size=(1, 2, 2),
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    config = Gemma2Config(
        head_dim=16,
        hidden_size=8,
        initializer_range=0.02,
        intermediate_size=64,
        max_position_embeddings=8192,
        num_attention_heads=2,
        num_hidden_layers=1,
        num_key_value_heads=2,
        vocab_size=400,
        attn_implementation="eager",
    )
    return diffusers.SanaVideoPipeline(
        tokenizer=tokenizer(),
        text_encoder=Gemma2Model(config).eval(),
        vae=wan_vae(),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )
