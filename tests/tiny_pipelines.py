"""Tiny diffusers pipelines with random weights, built from configs as diffusers' own fast tests build them."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import torch
from transformers import T5Config, T5EncoderModel

from captioning.text_encoder import train_tokenizer

TEXTS = ["a cat playing piano in Paris", "a red ball bounces", "low quality, blurred"]


@cache
def tokenizer():
    """A byte-level tokenizer, with the token limit and the padding of a real one."""
    return train_tokenizer(TEXTS, 300, 512)


def t5(width: int = 32) -> T5EncoderModel:
    """A T5 encoder of one layer."""
    config = T5Config(vocab_size=320, d_model=width, d_kv=8, d_ff=37, num_layers=1, num_heads=4, pad_token_id=0)
    return T5EncoderModel(config).eval()


def wan_vae():
    return diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )


def wan_transformer(**changes: Any):
    shape = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 32,
        "freq_dim": 256,
        "ffn_dim": 32,
        "num_layers": 2,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 32,
    }
    return diffusers.WanTransformer3DModel(**shape | changes)


def flow_unipc(shift: float = 3.0):
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
    )


def wan(**changes: Any):
    parts = {
        "tokenizer": tokenizer(),
        "text_encoder": t5(),
        "vae": wan_vae(),
        "scheduler": flow_unipc(),
        "transformer": wan_transformer(),
    }
    return diffusers.WanPipeline(**parts | changes)


def make(build, seed: int = 0):
    """Return a pipeline in evaluation mode whose weights are all random: none of its layers is zero."""
    torch.manual_seed(seed)
    pipe = build()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
            for value in part.parameters():
                if not value.any():
                    torch.nn.init.normal_(value, std=0.05)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def wan_5b():
    vae = diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=48,
        in_channels=12,
        out_channels=12,
        is_residual=True,
        patch_size=2,
        latents_mean=[0.0] * 48,
        latents_std=[1.0] * 48,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        scale_factor_spatial=16,
        scale_factor_temporal=4,
    )
    transformer = wan_transformer(in_channels=48, out_channels=48)
    return wan(vae=vae, transformer=transformer, expand_timesteps=True, scheduler=flow_unipc(5.0))


def wan_two_experts():
    return wan(transformer_2=wan_transformer(), boundary_ratio=0.875, scheduler=flow_unipc(8.0))


def wan_i2v(**changes):
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=4,
        projection_dim=4,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        intermediate_size=16,
        patch_size=1,
    )
    parts = {
        "tokenizer": tokenizer(),
        "text_encoder": t5(),
        "vae": wan_vae(),
        "scheduler": flow_unipc(),
        "transformer": wan_transformer(in_channels=36, image_dim=4, added_kv_proj_dim=24),
        "image_encoder": CLIPVisionModelWithProjection(config).eval(),
        "image_processor": CLIPImageProcessor(crop_size=32, size=32),
    }
    return diffusers.WanImageToVideoPipeline(**parts | changes)


def wan_flf():
    return wan_i2v(
        transformer=wan_transformer(
            in_channels=36, image_dim=4, added_kv_proj_dim=24, pos_embed_seq_len=2 * (32 * 32 + 1)
        )
    )


def wan_i2v_two_experts():
    parts = dict.fromkeys(("image_encoder", "image_processor"))
    transformers = {name: wan_transformer(in_channels=36) for name in ("transformer", "transformer_2")}
    return wan_i2v(**parts, **transformers, boundary_ratio=0.9)


def wan_vace():
    shape = dict(wan_transformer().config)
    names = ("patch_size", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "text_dim")
    names += ("freq_dim", "ffn_dim", "cross_attn_norm", "qk_norm", "rope_max_seq_len")
    transformer = diffusers.WanVACETransformer3DModel(
        **{name: shape[name] for name in names}, num_layers=3, vace_layers=[0, 2], vace_in_channels=96
    )
    return diffusers.WanVACEPipeline(
        tokenizer=tokenizer(), text_encoder=t5(), vae=wan_vae(), scheduler=flow_unipc(), transformer=transformer
    )


def ltx():
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=32,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        in_channels=3,
        out_channels=3,
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )
    return diffusers.LTXPipeline(
        tokenizer=tokenizer(), text_encoder=t5(), vae=vae, scheduler=scheduler, transformer=transformer
    )


def hunyuan():
    from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    vae = diffusers.AutoencoderKLHunyuanVideo(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        act_fn="silu",
        norm_num_groups=4,
        scaling_factor=0.476986,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
        mid_block_add_attention=True,
    )
    llama = LlamaConfig(
        hidden_size=16, intermediate_size=37, num_attention_heads=4, num_hidden_layers=3, vocab_size=400
    )
    clip = CLIPTextConfig(
        hidden_size=8,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        projection_dim=32,
        vocab_size=400,
        eos_token_id=1,
        bos_token_id=0,
    )
    return diffusers.HunyuanVideoPipeline(
        text_encoder=LlamaModel(llama).eval(),
        tokenizer=tokenizer(),
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=CLIPTextModel(clip).eval(),
        tokenizer_2=tokenizer(),
    )


def cogvideo(scheduler=None, **changes):
    shape = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 2,
        "text_embed_dim": 32,
        "num_layers": 1,
        "sample_width": 2,
        "sample_height": 2,
        "sample_frames": 9,
        "patch_size": 2,
        "temporal_compression_ratio": 4,
        "max_text_seq_length": 226,
        "use_rotary_positional_embeddings": True,
    }
    vae = diffusers.AutoencoderKLCogVideoX(
        in_channels=3,
        out_channels=3,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    chosen = scheduler or diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=1.0, timestep_spacing="trailing"
    )
    return diffusers.CogVideoXPipeline(
        tokenizer=tokenizer(),
        text_encoder=t5(),
        vae=vae,
        scheduler=chosen,
        transformer=diffusers.CogVideoXTransformer3DModel(**shape | changes),
    )


def mochi():
    transformer = diffusers.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        out_channels=None,
        qk_norm="rms_norm",
        text_embed_dim=32,
        time_embed_dim=4,
        activation_fn="swiglu",
        max_sequence_length=256,
    )
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12,
        out_channels=3,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    return diffusers.MochiPipeline(
        tokenizer=tokenizer(),
        text_encoder=t5(),
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    )


def skyreels():
    shape = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 32,
        "freq_dim": 256,
        "ffn_dim": 32,
        "num_layers": 2,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 32,
    }
    return diffusers.SkyReelsV2Pipeline(
        tokenizer=tokenizer(),
        text_encoder=t5(),
        vae=wan_vae(),
        scheduler=flow_unipc(8.0),
        transformer=diffusers.SkyReelsV2Transformer3DModel(**shape),
    )
