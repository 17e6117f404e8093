"""A small residual network, and what it returns on the way."""

from functools import cache

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Two convolutions with their normalisation, beside a shortcut (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        within = self.norm1(self.conv1(x)).relu()
        return (self.norm2(self.conv2(within)) + self.shortcut(x)).relu()


class Network(nn.Module):
    """[B, 3, side, side] -> [B, 10]: four stages of one block, each of half the side and twice the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(Residual(width, width, 1))
        self.layer2 = nn.Sequential(Residual(width, 2 * width, 2))
        self.layer3 = nn.Sequential(Residual(2 * width, 4 * width, 2))
        self.layer4 = nn.Sequential(Residual(4 * width, 8 * width, 2))
        self.fc = nn.Linear(8 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm1(self.conv1(images)).relu()
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


@cache
def activations(batch: tuple[int, ...], width: int) -> int:
    """Elements that convolutions and normalisations return for a batch."""
    counted = 0

    def count(module: nn.Module, arguments: object, output: Tensor) -> None:
        nonlocal counted
        counted += output.numel()

    with torch.device("meta"):
        network = Network(width)
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                module.register_forward_hook(count)
        network(torch.empty(batch))
    return counted
