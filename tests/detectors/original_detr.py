"""The original DETR written anew from its paper, with its checkpoints' names: what a conversion is held to."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FrozenNorm(nn.Module):
    """Batch norm whose statistics and affine parameters are all buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(channels) + 0.5)
        self.register_buffer("bias", 0.3 * torch.randn(channels))
        self.register_buffer("running_mean", 0.3 * torch.randn(channels))
        self.register_buffer("running_var", torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, var = (
            b[None, :, None, None] for b in (self.weight, self.bias, self.running_mean, self.running_var)
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, dilation: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), FrozenNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = FrozenNorm(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), FrozenNorm(4 * width)
        self.downsample = None
        if shortcut:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), FrozenNorm(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out)).relu()
        out = self.bn3(self.conv3(out))
        return (out + (x if self.downsample is None else self.downsample(x))).relu()


class Body(nn.Module):
    """ResNet with bottlenecks; with dc5 the last stage keeps its resolution, and its later blocks look twice as far."""

    def __init__(self, depths: Sequence[int], width: int, dc5: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), FrozenNorm(width)
        inputs = width
        for number, depth in enumerate(depths, start=1):
            inner = width * 2 ** (number - 1)
            dilated = dc5 and number == 4
            blocks = []
            for i in range(depth):
                stride = 2 if i == 0 and number > 1 and not dilated else 1
                blocks.append(Bottleneck(inputs, inner, stride, 2 if dilated and i else 1, i == 0))
                inputs = 4 * inner
            setattr(self, f"layer{number}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class Backbone(nn.Module):
    def __init__(self, depths: Sequence[int], width: int, dc5: bool) -> None:
        super().__init__()
        self.body = Body(depths, width, dc5)


class EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, padding: Tensor, position: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x + position, x + position, x, key_padding_mask=padding)[0])
        return self.norm2(x + self.linear2(self.linear1(x).relu()))


class DecoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads)
        self.multihead_attn = nn.MultiheadAttention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, memory: Tensor, padding: Tensor, position: Tensor, queries: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x + queries, x + queries, x)[0])
        found = self.multihead_attn(x + queries, memory + position, memory, key_padding_mask=padding)[0]
        x = self.norm2(x + found)
        return self.norm3(x + self.linear2(self.linear1(x).relu()))


class Stack(nn.Module):
    def __init__(self, layers: Sequence[nn.Module], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        if norm is not None:
            self.norm = norm


class Transformer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, encoder: int, decoder: int) -> None:
        super().__init__()
        self.encoder = Stack([EncoderLayer(width, heads, inner) for _ in range(encoder)])
        self.decoder = Stack([DecoderLayer(width, heads, inner) for _ in range(decoder)], nn.LayerNorm(width))


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 4)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[2](self.layers[1](self.layers[0](x).relu()).relu())


def sine(mask: Tensor, features: int) -> Tensor:
    """Position embedding (B, 2·features, H, W) of where the image is, (B, H, W) True inside, pixel by pixel."""
    out = torch.zeros(len(mask), 2 * features, *mask.shape[1:])
    for b, image in enumerate(mask):
        rows, columns = image.float().cumsum(0), image.float().cumsum(1)
        for half, counted, whole in ((0, rows, rows[-1:]), (1, columns, columns[:, -1:])):
            scaled = counted / (whole + 1e-6) * 2 * math.pi
            for i in range(features):
                angle = scaled / 10000 ** (2 * (i // 2) / features)
                out[b, half * features + i] = angle.cos() if i % 2 else angle.sin()
    return out


class OriginalDetr(nn.Module):
    """Returns logits (L, B, Q, C+1), boxes (L, B, Q, 4) and the last layer's normalised states (B, Q, D)."""

    def __init__(
        self,
        *,
        depths: Sequence[int] = (1, 2, 1, 2),
        stem: int = 8,
        width: int = 32,
        heads: int = 8,
        inner: int = 48,
        layers: int = 2,
        queries: int = 7,
        classes: int = 91,
        dc5: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = nn.Sequential(Backbone(depths, stem, dc5))
        self.input_proj = nn.Conv2d(32 * stem, width, 1)
        self.query_embed = nn.Embedding(queries, width)
        self.transformer = Transformer(width, heads, inner, layers, layers + 1)
        self.class_embed = nn.Linear(width, classes + 1)
        self.bbox_embed = MLP(width)

    def forward(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.backbone[0].body(pixels)
        inside = F.interpolate(mask[:, None].float(), size=features.shape[-2:])[:, 0].bool()
        position = sine(inside, self.query_embed.weight.shape[1] // 2).flatten(2).permute(2, 0, 1)
        x = self.input_proj(features).flatten(2).permute(2, 0, 1)  # (HW, B, D)
        padding = ~inside.flatten(1)
        for layer in self.transformer.encoder.layers:
            x = layer(x, padding, position)
        queries = self.query_embed.weight[:, None].expand(-1, len(pixels), -1)
        state, states = torch.zeros_like(queries), []
        for layer in self.transformer.decoder.layers:
            state = layer(state, x, padding, position, queries)
            states.append(self.transformer.decoder.norm(state).transpose(0, 1))
        out = torch.stack(states)
        return self.class_embed(out), self.bbox_embed(out).sigmoid(), out[-1]
