"""cnn_serving's network, and the pictures that it can tell apart.

The network is built as SqueezeNet is: "fire" blocks squeeze the channels, then
widen them by filters of two sizes.
"""

import torch
from torch import nn

KINDS = ["ring", "square", "cross", "stripes", "honeycomb"]
SIZE = 96  # pixels, each way


class Fire(nn.Module):
    def __init__(self, channels, squeeze, expand):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, 1)
        self.norm = nn.BatchNorm2d(squeeze)
        self.small = nn.Conv2d(squeeze, expand, 1)
        self.large = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x):
        x = self.norm(self.squeeze(x)).relu()
        return torch.cat([self.small(x), self.large(x)], 1).relu()


def network():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        Fire(32, 16, 32), Fire(64, 16, 48), nn.MaxPool2d(3, 2),
        Fire(96, 32, 96), Fire(192, 48, 192), Fire(384, 64, 256),
        nn.Conv2d(512, len(KINDS), 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def picture(kind):
    """A picture of that kind at a random place, in random colours, with noise."""
    x, y = 32 + 32 * torch.rand(2)
    r = 14 + 14 * torch.rand(())
    dy, dx = torch.meshgrid(torch.arange(SIZE) - y, torch.arange(SIZE) - x, indexing="ij")
    far = (dx**2 + dy**2).sqrt()
    box = torch.maximum(dx.abs(), dy.abs())
    shape = {
        "ring": (far < r) & (far > 0.6 * r),
        "square": box < 0.85 * r,
        "cross": (box < r) & (torch.minimum(dx.abs(), dy.abs()) < 0.25 * r),
        "stripes": (dx + dy) % (0.8 * r) < 0.4 * r,
        "honeycomb": (6.28 * dx / r).cos() + (3.14 * dx / r + 5.44 * dy / r).cos() + (3.14 * dx / r - 5.44 * dy / r).cos() > 0,
    }[kind]
    front, back = 0.5 + 0.5 * torch.rand(3, 1, 1), 0.5 * torch.rand(3, 1, 1)
    return torch.where(shape, front, back) + 0.1 * torch.randn(3, SIZE, SIZE)
