"""Small configurations of networks that nobody here wrote, with random weights: what each needs to
be made, and an input. The packages are the extra `architectures` of pyproject.toml.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Made = tuple[nn.Module, dict[str, Any]]  # a network and the named arguments of its forward pass
MAKERS: dict[str, Callable[[], Made]] = {}
WORDS = 50


def _image(size: int, channels: int = 3, dims: int = 2, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(batch, channels, *(size,) * dims, generator=generator)


def _first(model: nn.Module, x: torch.Tensor) -> Made:
    """A network whose first argument has a name of its own."""
    return _Positional(model), {"x": x}


class _Positional(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> Any:
        return self.model(x)


# ------------------------------------------------------------ transformers

_TEXT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "vocab_size": WORDS, "max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_CAUSAL = {**_TEXT, "num_key_value_heads": 1, "head_dim": 8}
_SMALL_IMAGE = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
_SOUND = {
    **_TEXT, "conv_dim": (8, 8), "conv_kernel": (10, 3), "conv_stride": (5, 2),
    "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0, "layerdrop": 0.0,
}  # fmt: skip
_ENCODER_DECODER = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "vocab_size": WORDS, "max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "Bert": _TEXT,
    "Roberta": _TEXT,
    "Electra": {**_TEXT, "embedding_size": 16},
    "Albert": {**_TEXT, "embedding_size": 16},
    "DebertaV2": {**_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "MPNet": _TEXT,
    "RoFormer": {**_TEXT, "embedding_size": 16},
    "ModernBert": {**_TEXT, "cls_token_id": 1, "sep_token_id": 2},
    "DistilBert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": WORDS},
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": WORDS, "n_positions": 40},
    "GPTNeoX": _TEXT,
    "OPT": {**_TEXT, "ffn_dim": 32, "word_embed_proj_dim": 16},
    "Bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2, "vocab_size": WORDS},
    "Falcon": _TEXT,
    "Llama": _CAUSAL,
    "Mistral": _CAUSAL,
    "Qwen2": _CAUSAL,
    "Qwen3": _CAUSAL,
    "Gemma2": _CAUSAL,
    "Phi": _TEXT,
    "Olmo2": _CAUSAL,
    "StableLm": _CAUSAL,
    "Mixtral": {**_CAUSAL, "num_local_experts": 3},
    "Mamba": {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": WORDS, "state_size": 4},
    "XLNet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32, "vocab_size": WORDS},
    "T5": {
        "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2,
        "vocab_size": WORDS,
    },
    "Bart": _ENCODER_DECODER,
    "Whisper": {
        **_ENCODER_DECODER, "num_mel_bins": 8, "max_source_positions": 20,
        "max_target_positions": 20,
    },
    "ViT": _SMALL_IMAGE,
    "DeiT": _SMALL_IMAGE,
    "Beit": _SMALL_IMAGE,
    "Dinov2": _SMALL_IMAGE,
    "Yolos": {**_SMALL_IMAGE, "image_size": [32, 32], "num_detection_tokens": 3},
    "Swin": {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1],
             "num_heads": [2, 2], "window_size": 4},
    "ConvNext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "Segformer": {
        "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [4, 1], "hidden_sizes": [8, 16],
        "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2],
        "mlp_ratios": [2, 2], "decoder_hidden_size": 16,
    },
    "Wav2Vec2": _SOUND,
    "WavLM": _SOUND,
    "Hubert": _SOUND,
}  # fmt: skip


def _transformers(name: str, options: dict[str, Any]) -> Made:
    import transformers

    config = getattr(transformers, f"{name}Config")(**options)
    if name == "Mixtral":  # torch's grouped product takes no float64
        config._experts_implementation = "eager"
    model = transformers.AutoModel.from_config(config).eval()
    words = torch.arange(3, 19).view(2, 8)
    if options is _SOUND:
        return model, {"input_values": _image(400, 1, 1)[:, 0]}
    if name == "Whisper":
        return model, {"input_features": _image(40, 8, 1), "decoder_input_ids": words}
    if any(n in options for n in ("image_size", "hidden_sizes")):
        return model, {"pixel_values": _image(32)}
    more = {"decoder_input_ids": words} if name in ("T5", "Bart") else {}
    return model, {"input_ids": words, **more}


for _name, _options in _TRANSFORMERS.items():
    MAKERS[f"transformers {_name}"] = lambda name=_name, options=_options: _transformers(
        name, options
    )

# ------------------------------------------------------------ MONAI, diffusers, torch_geometric

_MONAI: dict[str, tuple[dict[str, Any], int, int, int]] = {  # options, size, channels, dimensions
    "UNet": (
        {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": (4, 8, 8),
         "strides": (2, 2), "num_res_units": 1}, 16, 1, 3,
    ),
    "BasicUNet": (
        {"spatial_dims": 2, "in_channels": 1, "features": (4, 4, 8, 8, 8, 4)}, 32, 1, 2,
    ),
    "AttentionUnet": (
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": (4, 8, 8),
         "strides": (2, 2)}, 16, 1, 2,
    ),
    "DynUNet": (
        {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "kernel_size": [3, 3, 3],
         "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 8, 8]}, 8, 1, 3,
    ),
    "VNet": ({"spatial_dims": 3, "in_channels": 1, "out_channels": 2}, 16, 1, 3),
    "SegResNet": ({"spatial_dims": 3, "init_filters": 8, "in_channels": 1}, 16, 1, 3),
    "UNETR": (
        {"in_channels": 1, "out_channels": 2, "img_size": 32, "feature_size": 4,
         "hidden_size": 24, "mlp_dim": 32, "num_heads": 2, "spatial_dims": 2}, 32, 1, 2,
    ),
    "SwinUNETR": (
        {"in_channels": 1, "out_channels": 2, "feature_size": 12, "spatial_dims": 2}, 64, 1, 2,
    ),
    "HighResNet": ({"spatial_dims": 2, "in_channels": 1, "out_channels": 2}, 16, 1, 2),
}  # fmt: skip


def _monai(name: str, options: dict[str, Any], size: int, channels: int, dims: int) -> Made:
    nets = importlib.import_module("monai.networks.nets")
    return _first(getattr(nets, name)(**options), _image(size, channels, dims))


for _name, _arguments in _MONAI.items():
    MAKERS[f"monai {_name}"] = lambda name=_name, arguments=_arguments: _monai(name, *arguments)


def _diffusion() -> Made:
    from diffusers import UNet2DModel

    model = UNet2DModel(
        sample_size=16, in_channels=1, out_channels=1, block_out_channels=(8, 16),
        layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return model, {"sample": _image(16, 1), "timestep": torch.tensor([3, 7])}


def _autoencoder() -> Made:
    from diffusers import AutoencoderKL

    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4), {"sample": _image(16)}


def _graph(layer: str) -> Made:
    from torch_geometric import nn as graphs

    model = getattr(graphs, layer)(8, 16, num_layers=2, out_channels=4)
    edges = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 3]])
    return model, {"x": _image(8, 5, 1, 1)[0], "edge_index": edges}


MAKERS["diffusers UNet2DModel"] = _diffusion
MAKERS["diffusers AutoencoderKL"] = _autoencoder
for _name in ("GCN", "GAT", "GraphSAGE", "GIN"):
    MAKERS[f"torch_geometric {_name}"] = lambda name=_name: _graph(name)


# ------------------------------------------------------------ torch's own


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(8, 16, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[0]  # type: ignore[no-any-return]


for _kind in (nn.LSTM, nn.GRU, nn.RNN):
    MAKERS[f"torch {_kind.__name__}"] = lambda kind=_kind: _first(
        _Recurrent(kind), _image(8, 6, 1)
    )
MAKERS["torch Transformer"] = lambda: (
    nn.Transformer(16, 2, 1, 1, 32, batch_first=True),
    {"src": _image(16, 6, 1), "tgt": _image(16, 5, 1)},
)
