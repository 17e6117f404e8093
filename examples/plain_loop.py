"""A ResNet, first on upright digits, then on mirrored ones: L2-SP and DTNH in a loop of one's own.

python examples/plain_loop.py
"""

import argparse

import torch
from torch.nn.functional import cross_entropy, interpolate
from transformers import ResNetConfig, ResNetForImageClassification

import pytl
from pytl.data import batches, digits

SIZE = 16  # the digits' 8x8 are enlarged for a ResNet's strides


def network() -> ResNetForImageClassification:
    config = ResNetConfig(
        num_channels=1, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=10
    )
    return ResNetForImageClassification(config)


def logits(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model(interpolate(images, SIZE)).logits


def train(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, data: torch.utils.data.Dataset, epochs: int
) -> None:
    for _ in range(epochs):
        for images, labels in batches(data, 16, shuffle=True):
            loss = cross_entropy(logits(model, images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


@torch.no_grad()
def accuracy(model: torch.nn.Module, data: torch.utils.data.Dataset) -> float:
    images, labels = next(iter(batches(data, len(data), shuffle=False)))
    model.eval()
    return float((logits(model, images).argmax(1) == labels).float().mean())


def main(epochs: int) -> float:
    torch.manual_seed(0)
    task = digits.load("mirrored", seed=0)
    model = network().train()
    train(model, pytl.AdamW(model.parameters(), lr=3e-3), task.source, epochs)
    model.classifier[-1].reset_parameters()

    groups = pytl.param_groups(model, head="classifier", sp_decay=0.03, head_weight_decay=0.03)
    optimizer = pytl.AdamW(groups, lr=3e-3, direction="dtnh")
    train(model, optimizer, task.train, epochs)
    print(optimizer.report())
    return accuracy(model, task.test)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--epochs", type=int, default=15, help="on the source, and on the target (default: %(default)s)"
    )
    print(f"accuracy on mirrored digits: {main(parser.parse_args().epochs):.1%}")
