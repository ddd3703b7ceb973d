"""The networks of peers.py, with random weights: each by name, its sizes and a function to time.

FastSurferVINN is written after its description (Henschel et al., NeuroImage 2022) and the numbers
of its configuration (Deep-MI/FastSurfer v2.1.1, FastSurferVINN_*.yaml), ECAPA-TDNN after
Desplanques et al. (Interspeech 2020) and the numbers of big-data-lab-team/fuzzy-pytorch's
train.yaml.
Batch B, channels C, rows H, columns W, frames of audio T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from morphbits import machine

FILTERS, INPUT_FILTERS, SLICES, CLASSES = 71, 32, 7, 79  # of FastSurferVINN
LARGE_MEMORY = 8 * 2**30  # what WavLM-large's forward pass takes, with a margin: 3.5 GB, measured


@dataclass(frozen=True)
class Network:
    """What is timed: `make(small)` gives a description, and a function that computes one unit."""

    make: Callable[[bool], tuple[str, Callable[[], Any]]]
    unit: str
    units: int = 1  # in the published whole process
    package: str = ""
    published: tuple[str, str, str, str] | None = None  # Verrou up-down, SR; PRISM up-down, SR


def mnist(small: bool) -> tuple[str, Callable[[], Any]]:
    """The convolutional network of pytorch/examples on a batch of images."""
    images = 50 if small else 1000
    network = nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 10), nn.LogSoftmax(1)),
    )
    return f"MNIST, {images} images", forward(network, torch.rand(images, 1, 28, 28))


def fastsurfer(small: bool) -> tuple[str, Callable[[], Any]]:
    """One slice, with its six neighbours as channels, on the network's own grid."""
    size = 64 if small else 256
    network = FastSurferVINN()
    return f"FastSurferVINN, {size}×{size}", forward(network, torch.rand(1, SLICES, size, size))


def wavlm(small: bool) -> tuple[str, Callable[[], Any]]:
    """WavLM and an ECAPA-TDNN head on seconds of audio at 16 kHz."""
    from transformers import WavLMConfig, WavLMModel

    seconds = 1 if small else 5
    large = not small and machine.memory_free() > LARGE_MEMORY
    sizes: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
    sizes |= {"hidden_size": 1024, "intermediate_size": 4096}
    sizes |= {"num_hidden_layers": 24, "num_attention_heads": 16}
    config = WavLMConfig(**(sizes if large else {}))
    network = nn.Sequential(WavLM(WavLMModel(config)), EcapaTdnn(config.hidden_size, 2))
    name = f"WavLM-{'large' if large else 'base'}, {seconds} s"
    return name, forward(network, torch.randn(1, 16000 * seconds))


def vxm_pairwise(small: bool) -> tuple[str, Callable[[], Any]]:
    """The registration network of voxelmorph 0.3.4, as its class makes it."""
    from voxelmorph.nn.models import VxmPairwise

    size = 32 if small else 64
    network = VxmPairwise(ndim=3, source_channels=1, target_channels=1)
    images = [torch.rand(1, 1, size, size, size) for _ in range(2)]
    return f"VxmPairwise, {size}³", forward(network, *images)


def gpt2(small: bool) -> tuple[str, Callable[[], Any]]:
    """A training step: forward, cross-entropy, backward, AdamW; without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokens, layers = (32, 1) if small else (128, 12)
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    network = GPT2LMHeadModel(GPT2Config(n_layer=layers, **dropout)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)
    text = torch.randint(network.config.vocab_size, (1, tokens))

    def step() -> None:
        network(text, labels=text).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return f"GPT-2, {layers} layers, step of {tokens} tokens", step


def forward(network: nn.Module, *inputs: Tensor) -> Callable[[], Any]:
    """The forward pass in evaluation, without gradients."""
    network.eval()
    return torch.no_grad()(lambda: network(*inputs))


# published: times of the unperturbed process, as perf-DL-stats.csv of fuzzy-pytorch has them
NETWORKS = {
    "mnist": Network(mnist, "1,000 images", 10, "", ("311", "335", "7.9", "10.9")),
    "fastsurfer": Network(fastsurfer, "a slice", 768, "", ("214", "198", "3.6", "4.1")),
    "wavlm": Network(wavlm, "5 s", 1, "transformers", ("364", "419", "64", "53")),
    "vxm-pairwise": Network(vxm_pairwise, "a pair", 1, "voxelmorph"),
    "gpt2": Network(gpt2, "a step", 1, "transformers"),
}


def _convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out)
    )


class Dense(nn.Module):
    """Four convolutions with batch norms; the larger of old and new goes on, after a PReLU.

    first: 'compete' (the input takes part in the first maximum), 'input' (it is normalized and
    not activated), 'output' (it is activated and has other channels).
    """

    def __init__(self, channels_in: int, channels: int, first: str = "compete") -> None:
        super().__init__()
        widths = [channels_in, channels, channels, channels]
        self.convolutions = nn.ModuleList(_convolution(width, channels) for width in widths)
        self.normalize = nn.BatchNorm2d(channels_in) if first == "input" else nn.Identity()
        self.activate, self.first = nn.PReLU(), first

    def forward(self, x: Tensor) -> Tensor:
        start, *middle, end = self.convolutions
        x = self.normalize(x)
        best = start(x if self.first == "input" else self.activate(x))
        if self.first == "compete":
            best = torch.maximum(x, best)
        for convolution in middle:
            best = torch.maximum(convolution(self.activate(best)), best)
        return end(self.activate(best))


class FastSurferVINN(nn.Module):
    """Logits (B, 79, H, W) of slices (B, 7, H, W) with the network's own voxels: the zoom between
    its outer and inner blocks then leaves them as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.input = Dense(SLICES, INPUT_FILTERS, "input")
        self.encoders = nn.ModuleList(
            [Dense(INPUT_FILTERS, FILTERS, "input"), *(Dense(FILTERS, FILTERS) for _ in range(3))]
        )
        self.bottleneck = Dense(FILTERS, FILTERS)
        self.decoders = nn.ModuleList(Dense(FILTERS, FILTERS) for _ in range(4))
        self.output = Dense(FILTERS + INPUT_FILTERS, FILTERS, "output")
        self.classify = nn.Conv2d(FILTERS, CLASSES, 1)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = outer = self.input(x)
        skipped = []
        for encoder in self.encoders:
            x = encoder(x)
            pooled, places = self.pool(x)
            skipped.append((x, places))
            x = pooled
        x = self.bottleneck(x)
        for decoder, (skip, places) in zip(self.decoders, reversed(skipped), strict=True):
            x = decoder(torch.maximum(self.unpool(x, places), skip))
        return self.classify(self.output(torch.cat([x, outer], 1)))


class WavLM(nn.Module):
    """Features (B, C, T) of normalized audio (B, samples)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, audio: Tensor) -> Tensor:
        audio = nn.functional.layer_norm(audio, audio.shape)
        return self.model(audio).last_hidden_state.transpose(1, 2)


def _frames(
    channels_in: int, channels_out: int, width: int = 1, dilation: int = 1
) -> nn.Sequential:
    """A convolution over frames, ReLU, batch norm."""
    convolution = nn.Conv1d(
        channels_in, channels_out, width, 1, "same", dilation, padding_mode="reflect"
    )
    return nn.Sequential(convolution, nn.ReLU(), nn.BatchNorm1d(channels_out))


class SqueezeRes2(nn.Module):
    """Res2Net over eight groups of channels, squeeze and excitation, and the input added."""

    def __init__(self, channels: int, dilation: int, squeezed: int = 128) -> None:
        super().__init__()
        eighth = channels // 8
        self.before, self.after = _frames(channels, channels), _frames(channels, channels)
        self.groups = nn.ModuleList(_frames(eighth, eighth, 3, dilation) for _ in range(7))
        self.excite = nn.Sequential(
            *(nn.Conv1d(channels, squeezed, 1), nn.ReLU()),
            *(nn.Conv1d(squeezed, channels, 1), nn.Sigmoid()),
        )

    def forward(self, x_BCT: Tensor) -> Tensor:
        first, *parts = self.before(x_BCT).chunk(8, 1)
        results, last = [first], torch.zeros_like(first)
        for i, (group, part) in enumerate(zip(self.groups, parts, strict=True)):
            last = group(part + last if i else part)
            results.append(last)
        x = self.after(torch.cat(results, 1))
        return x_BCT + x * self.excite(x.mean(2, keepdim=True))


class EcapaTdnn(nn.Module):
    """Cosines (B, classes) of features (B, C, T): ECAPA-TDNN and its classifier."""

    def __init__(
        self, features: int, classes: int, channels: int = 1024, wide: int = 3072
    ) -> None:
        super().__init__()
        self.first = _frames(features, channels, 5)
        self.blocks = nn.ModuleList(SqueezeRes2(channels, dilation) for dilation in (2, 3, 4))
        self.aggregate = _frames(3 * channels, wide)
        self.attend = nn.Sequential(
            _frames(3 * wide, 128), nn.Tanh(), nn.Conv1d(128, wide, 1), nn.Softmax(2)
        )
        self.embed = nn.Sequential(nn.BatchNorm1d(2 * wide), nn.Linear(2 * wide, 192))
        self.classes = nn.Parameter(torch.randn(classes, 192))

    def forward(self, x_BCT: Tensor) -> Tensor:
        x, outputs = self.first(x_BCT), []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        x = self.aggregate(torch.cat(outputs, 1))
        mean, deviation = _moments(x, torch.full_like(x[:, :1], 1 / x.shape[2]))
        weights = self.attend(torch.cat([x, mean.expand_as(x), deviation.expand_as(x)], 1))
        embedding = self.embed(torch.cat(_moments(x, weights), 1).squeeze(2))
        normalize = nn.functional.normalize
        return nn.functional.linear(normalize(embedding), normalize(self.classes))


def _moments(x_BCT: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation over frames, (B, C, 1)."""
    mean = (x_BCT * weights).sum(2, keepdim=True)
    variance = ((x_BCT - mean).square() * weights).sum(2, keepdim=True)
    return mean, variance.clamp(min=1e-12).sqrt()
