"""The structure of the official EfficientFormerV2 code, restated: submodules, attributes, key names.

The real files (github.com/snap-research/EfficientFormer: models/efficientformer_v2.py, detection/ and
segmentation/backbonev2.py) cannot be installed. What matters here is kept: how things are called, how the
attention bias is numbered, stored and gathered, and what is computed. Class names differ on purpose, since
the adapter must not depend on them.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn


def conv_bn(inputs, outputs, kernel=1, stride=1, groups=1):
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class WithBias(nn.Module):
    """The bias of both attentions: distances numbered as they are met, gathered when eval() is called."""

    def add_bias(self, heads, queries, keys, step, dense):
        numbers = {}
        index = [
            numbers.setdefault((abs(step * q[0] - k[0]), abs(step * q[1] - k[1])), len(numbers))
            for q in queries
            for k in keys
        ]
        index = torch.tensor(index).view(len(queries), len(keys))
        self.suffix = "_seg" if dense else ""
        if dense:  # keeps the classifier's, of 224x224 images, unused
            self.register_buffer("attention_biases", torch.zeros(heads, 49))
            self.register_buffer("attention_bias_idxs", torch.ones(49, 49).long())
        setattr(self, f"attention_biases{self.suffix}", nn.Parameter(torch.zeros(heads, len(numbers))))
        self.register_buffer(f"attention_bias_idxs{self.suffix}", index)

    def gathered(self):
        biases = getattr(self, f"attention_biases{self.suffix}")
        return biases[:, getattr(self, f"attention_bias_idxs{self.suffix}")]

    @torch.no_grad()
    def train(self, mode=True):
        super().train(mode)
        if mode and hasattr(self, "ab"):
            del self.ab
        else:
            self.ab = self.gathered()

    def bias_for(self, logits):
        bias = self.gathered() if self.training else self.ab
        if self.suffix:
            bias = F.interpolate(bias[None], size=logits.shape[-2:], mode="bicubic")
        return bias


class Mixer(WithBias):
    def __init__(self, dim, resolution, stride=None, dense=False, heads=8, key_dim=32, ratio=4):
        super().__init__()
        self.num_heads, self.key_dim, self.scale = heads, key_dim, key_dim**-0.5
        self.resolution = math.ceil(resolution / stride) if stride else resolution
        self.stride_conv = conv_bn(dim, dim, 3, stride, dim) if stride else None
        self.upsample = nn.Upsample(scale_factor=stride, mode="bilinear") if stride else None
        inner = ratio * key_dim * heads
        self.q = conv_bn(dim, key_dim * heads)
        self.k = conv_bn(dim, key_dim * heads)
        self.v = conv_bn(dim, inner)
        self.v_local = conv_bn(inner, inner, 3, 1, inner)
        self.talking_head1 = nn.Conv2d(heads, heads, 1)
        self.talking_head2 = nn.Conv2d(heads, heads, 1)
        self.proj = nn.Sequential(nn.GELU(), nn.Conv2d(inner, dim, 1), nn.BatchNorm2d(dim))
        points = list(itertools.product(range(self.resolution), repeat=2))
        self.add_bias(heads, points, points, 1, dense)

    def forward(self, x):
        z = self.stride_conv(x) if self.stride_conv is not None else x
        n, _, rows, cols = z.shape
        v_map = self.v(z)
        q, k, v = (t.reshape(n, self.num_heads, -1, rows * cols) for t in (self.q(z), self.k(z), v_map))
        logits = q.transpose(2, 3) @ k * self.scale
        p = self.talking_head2(self.talking_head1(logits + self.bias_for(logits)).softmax(-1))
        u = (v @ p.transpose(2, 3)).reshape(n, -1, rows, cols) + self.v_local(v_map)
        return self.proj(self.upsample(u) if self.upsample is not None else u)


class Query(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.pool = nn.AvgPool2d(1, 2, 0)
        self.local = nn.Sequential(nn.Conv2d(inputs, inputs, 3, 2, 1, groups=inputs))
        self.proj = conv_bn(inputs, outputs)

    def forward(self, x):
        return self.proj(self.local(x) + self.pool(x))


class Shrink(WithBias):
    def __init__(self, dim, out_dim, resolution, dense=False, heads=8, key_dim=16, ratio=4):
        super().__init__()
        self.num_heads, self.key_dim, self.scale = heads, key_dim, key_dim**-0.5
        self.resolution, self.resolution2 = resolution, math.ceil(resolution / 2)
        inner = ratio * key_dim * heads
        self.q = Query(dim, key_dim * heads)
        self.k = conv_bn(dim, key_dim * heads)
        self.v = conv_bn(dim, inner)
        self.v_local = conv_bn(inner, inner, 3, 2, inner)
        self.proj = nn.Sequential(nn.GELU(), nn.Conv2d(inner, out_dim, 1), nn.BatchNorm2d(out_dim))
        queries = list(itertools.product(range(self.resolution2), repeat=2))
        keys = list(itertools.product(range(resolution), repeat=2))
        self.add_bias(heads, queries, keys, 2, dense)

    def forward(self, x):
        n = x.shape[0]
        q_map, v_map = self.q(x), self.v(x)
        q, k, v = (t.flatten(2).unflatten(1, (self.num_heads, -1)) for t in (q_map, self.k(x), v_map))
        logits = q.transpose(2, 3) @ k * self.scale
        p = (logits + self.bias_for(logits)).softmax(-1)
        u = (v @ p.transpose(2, 3)).reshape(n, -1, *q_map.shape[2:])
        return self.proj(u + self.v_local(v_map))


class Step(nn.Module):
    """Between stages."""

    def __init__(self, dim, out_dim, resolution, asub, dense):
        super().__init__()
        self.light, self.asub = False, asub
        conv, norm = nn.Conv2d(dim, out_dim, 3, 2, 1), nn.BatchNorm2d(out_dim)
        if asub:
            self.attn = Shrink(dim, out_dim, resolution, dense)
            self.conv, self.bn = conv, norm
        else:
            self.proj, self.norm = conv, norm

    def forward(self, x):
        return self.attn(x) + self.bn(self.conv(x)) if self.asub else self.norm(self.proj(x))


class Perceptron(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.mid_conv = True
        self.fc1, self.fc2 = nn.Conv2d(dim, hidden, 1), nn.Conv2d(hidden, dim, 1)
        self.act, self.drop = nn.GELU(), nn.Dropout(0.0)
        self.mid = nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden)
        self.mid_norm = nn.BatchNorm2d(hidden)
        self.norm1, self.norm2 = nn.BatchNorm2d(hidden), nn.BatchNorm2d(dim)

    def forward(self, x):
        x = self.act(self.norm1(self.fc1(x)))
        return self.norm2(self.fc2(self.act(self.mid_norm(self.mid(x)))))


class Unit(nn.Module):
    """A block of a stage, with attention (AttnFFN) or without (FFN)."""

    def __init__(self, dim, hidden, mixer):
        super().__init__()
        if mixer is not None:
            self.token_mixer = mixer
        self.mlp = Perceptron(dim, hidden)
        self.drop_path = nn.Identity()
        self.use_layer_scale = True
        for number in (1, 2) if mixer is not None else (2,):
            self.register_parameter(f"layer_scale_{number}", nn.Parameter(1e-5 * torch.ones(dim, 1, 1)))

    def forward(self, x):
        if hasattr(self, "token_mixer"):
            x = x + self.drop_path(self.layer_scale_1 * self.token_mixer(x))
        return x + self.drop_path(self.layer_scale_2 * self.mlp(x))


class Official(nn.Module):
    """fork_feat: return features; norms: each with a BatchNorm; dense: the detection backbone's bias."""

    def __init__(
        self,
        architecture,
        resolution=224,
        num_classes=1000,
        dist=True,
        fork_feat=False,
        norms=False,
        dense=False,
    ):
        super().__init__()
        widths = architecture.widths
        act = nn.GELU
        self.patch_embed = nn.Sequential(
            *conv_bn(3, widths[0] // 2, 3, 2), act(), *conv_bn(widths[0] // 2, widths[0], 3, 2), act()
        )
        network = []
        for i, ratios in enumerate(architecture.block_ratios()):
            side = math.ceil(resolution / 2 ** (i + 2))
            late = architecture.late_attention()[i - 2] if i >= 2 else 0
            units = []
            for j, ratio in enumerate(ratios):
                attends = j >= len(ratios) - late
                mixer = Mixer(widths[i], side, 2 if i == 2 else None, dense) if attends else None
                units.append(Unit(widths[i], int(widths[i] * ratio), mixer))
            network.append(nn.Sequential(*units))
            if i < 3:
                network.append(Step(widths[i], widths[i + 1], side, i == 2, dense))
        self.network = nn.ModuleList(network)
        self.fork_feat = fork_feat
        if fork_feat:
            self.out_indices = [0, 2, 4, 6]
            if norms:
                for i, width in zip(self.out_indices, widths, strict=True):
                    self.add_module(f"norm{i}", nn.BatchNorm2d(width))
        else:
            self.norm = nn.BatchNorm2d(widths[3])
            self.head = nn.Linear(widths[3], num_classes) if num_classes else nn.Identity()
            self.dist = dist
            if dist:
                self.dist_head = nn.Linear(widths[3], num_classes) if num_classes else nn.Identity()

    def forward(self, x):
        x = self.patch_embed(x)
        features = []
        for i, part in enumerate(self.network):
            x = part(x)
            if self.fork_feat and i in self.out_indices:
                features.append(getattr(self, f"norm{i}")(x) if hasattr(self, f"norm{i}") else x)
        if self.fork_feat:
            return features
        pooled = self.norm(x).flatten(2).mean(-1)
        return (self.head(pooled) + self.dist_head(pooled)) / 2 if self.dist else self.head(pooled)
