"""A ViT, first on upright digits, then on mirrored ones: L2-SP and DTNH in an Accelerate loop.

A plain Accelerate loop differs in the two lines that make the optimizer, and where ``max_grad_norm`` takes the place of
``accelerator.clip_grad_norm_``. The run stops half-way, and goes on in new objects from what ``save_state`` has saved.

    python examples/accelerate_loop.py
"""

import argparse
import tempfile
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from transformers import ViTConfig, ViTForImageClassification

import pytl
from pytl.data import digits


def network() -> ViTForImageClassification:
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=10,
    )
    return ViTForImageClassification(config)


def prepared(accelerator: Accelerator, model: torch.nn.Module, data: Dataset) -> tuple[Any, Any, Any]:
    groups = pytl.param_groups(model, head="classifier", sp_decay=0.01, head_weight_decay=0.01, verbose=False)
    optimizer = pytl.AdamW(groups, lr=2e-3, direction="dtnh", max_grad_norm=1.0)
    return accelerator.prepare(model, optimizer, DataLoader(data, 8, shuffle=True))


def train(
    accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer, data: DataLoader, epochs: int
) -> None:
    model.train()
    for _ in range(epochs):
        for images, labels in data:
            with accelerator.accumulate(model):
                loss = cross_entropy(model(images).logits, labels)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()


@torch.no_grad()
def accuracy(model: torch.nn.Module, data: Dataset) -> float:
    images, labels = next(iter(DataLoader(data, len(data))))
    model.eval()
    return float((model(images).logits.argmax(1) == labels).float().mean())


def main(epochs: int) -> float:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    task = digits.load("mirrored", seed=0, share=1)
    model = network()
    plain = pytl.AdamW(model.parameters(), lr=2e-3)
    train(accelerator, *accelerator.prepare(model, plain, DataLoader(task.source, 8, shuffle=True)), epochs)
    torch.nn.init.normal_(model.classifier.weight, std=0.02)
    accelerator.free_memory()

    run = prepared(accelerator, model, task.train)
    train(accelerator, *run, epochs // 2)
    with tempfile.TemporaryDirectory() as folder:
        accelerator.save_state(folder)
        accelerator.free_memory()
        model, optimizer, data = prepared(accelerator, network(), task.train)
        accelerator.load_state(folder)  # the starting point as well
    train(accelerator, model, optimizer, data, epochs - epochs // 2)
    print(optimizer.optimizer.report())
    return accuracy(model, task.test)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--epochs", type=int, default=15, help="on the source, and on the target (default: %(default)s)"
    )
    torch.set_num_threads(1)  # so small a network is slower with more
    print(f"accuracy on mirrored digits: {main(parser.parse_args().epochs):.1%}")
