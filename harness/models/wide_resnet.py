"""Wide ResNet d-k with pre-activation and no dropout, for images of about 32 x 32.

Source: Zagoruyko and Komodakis, "Wide Residual Networks" (2016), in the form that GluonCV's `cifar_wideresnet40_8`
gives it, which the CSER authors trained.

That form differs from the article in two places: a batch norm without affine parameters stands on the input, and a
batch norm (with them, without ReLU) stands between the first convolution and the first block.

Parameters of d = 6n + 4, width k, C classes, from c channels, with w = 16k, 32k, 64k the stages' channels and u = 16,
16k, 32k what enters them:
    144c + 32 + sum over stages of [9uw + 9(2n - 1)w^2 + 2u + 2(2n - 1)w + (uw where u != w)] + 128k + 64kC + C
in 18n + 10 tensors (18n + 9 where k = 1). For 40-8, 3 channels and 100 classes: 35,794,516 in 118.

Initial values are those of the CSER authors' script: Glorot uniform weights (MXNet's `Xavier()`), zero biases.

Deviations: none from that form.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from harness.models.resnet50_v2 import head, stage


def build(input_shape: tuple[int, ...], num_classes: int, depth: int, width: int) -> nn.Module:
    """Three stages of n blocks, the second and third at half the resolution of the one before.

    Args:
        input_shape: (channels, height, width).
        num_classes: outputs.
        depth: 6n + 4, for n blocks in each of three stages.
        width: the factor k; the stages have 16k, 32k and 64k channels.
    """
    if type(depth) is not int or depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth must be 6n + 4 (10, 16, 22, 28, 34, 40, ...), not {depth!r}")
    if type(width) is not int or width < 1:
        raise ValueError(f"width must be a whole number of at least 1, not {width!r}")
    num_blocks = (depth - 4) // 6
    last = 64 * width
    model = nn.Sequential(
        nn.BatchNorm2d(input_shape[0], affine=False),
        nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        stage(PreActivationBlock, 16, 16 * width, num_blocks, stride=1),
        stage(PreActivationBlock, 16 * width, 32 * width, num_blocks, stride=2),
        stage(PreActivationBlock, 32 * width, last, num_blocks, stride=2),
        *head(last, num_classes),
    )
    model.apply(_initialise)
    return model


class PreActivationBlock(nn.Module):
    """Twice batch norm, ReLU and a 3 x 3 convolution, added to the input."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        changes = channels != in_channels  # a stride comes only with more channels
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x), inplace=True)
        # A projection starts from the activated input; the identity, from the input itself.
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        branch: Tensor = self.conv1(activated)
        branch = self.conv2(F.relu(self.bn2(branch), inplace=True))
        return branch + shortcut


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
