"""A convolutional network, first on upright digits, then on mirrored ones: L2-SP and DTNH by a name in timm's registry.

Needs ``pip install timm``, 1.0.12 or newer. In timm's own ``train.py``, ``register()`` before its ``main()`` makes
``--opt pytl-adamw --opt-kwargs sp_decay=0.01 direction=dtnh`` work, with one pull for all parameters.

    python examples/timm_registry.py
"""

import argparse
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import pytl
import pytl.integrations.timm
from pytl.data import batches, digits


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [layer for i, o in ((1, 16), (16, 32), (32, 32)) for layer in (nn.Conv2d(i, o, 3, 1, 1), nn.ReLU())]
        self.body = nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten())
        self.head = nn.Linear(4 * 32, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: torch.utils.data.Dataset, epochs: int) -> None:
    for _ in range(epochs):
        for images, labels in batches(data, 16, shuffle=True):
            loss = cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


@torch.no_grad()
def accuracy(model: nn.Module, data: torch.utils.data.Dataset) -> float:
    images, labels = next(iter(batches(data, len(data), shuffle=False)))
    return float((model(images).argmax(1) == labels).float().mean())


def main(epochs: int) -> float:
    from timm.optim import create_optimizer_v2

    pytl.integrations.timm.register()
    torch.manual_seed(0)
    task = digits.load("mirrored", seed=0)
    model = Network()
    train(model, create_optimizer_v2(model, "pytl-adamw", lr=3e-3, weight_decay=0.01), task.source, epochs)
    model.head.reset_parameters()

    groups = partial(pytl.param_groups, head="head", sp_decay=0.03, head_weight_decay=0.03, verbose=False)
    optimizer = create_optimizer_v2(model, "pytl-adamw", lr=3e-3, direction="dtnh", param_group_fn=groups)
    train(model, optimizer, task.train, epochs)
    print(optimizer.report())
    return accuracy(model, task.test)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--epochs", type=int, default=15, help="on the source, and on the target (default: %(default)s)"
    )
    print(f"accuracy on mirrored digits: {main(parser.parse_args().epochs):.1%}")
