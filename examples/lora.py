"""A ViT on upright digits, then LoRA adapters for mirrored ones, with PEFT: what L2-SP means there.

The network's own weights are frozen. An adapter adds B A to one of them, and starts with A random and B = 0: nothing is
added. L2-SP pulls A to where it started and B to 0, so the network to where it started; weight decay pulls both to 0.
The new head is PEFT's copy in ``modules_to_save``, and is left free. Needs ``pip install peft``.

    python examples/lora.py
"""

import argparse
import copy

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import ViTConfig, ViTForImageClassification

import pytl
from pytl.data import batches, digits

HEAD = "base_model.model.classifier"
PULLS = {"none": {}, "weight decay": {"weight_decay": 1.0}, "L2-SP": {"sp_decay": 1.0}}


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


def adapted(source: ViTForImageClassification) -> PeftModel:
    """A copy of the network with adapters and a new head."""
    model = copy.deepcopy(source)
    torch.nn.init.normal_(model.classifier.weight, std=0.02)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    return get_peft_model(model, config)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, data: Dataset, epochs: int) -> None:
    model.train()
    for _ in range(epochs):
        for images, labels in batches(data, 16, shuffle=True):
            loss = cross_entropy(model(images).logits, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


@torch.no_grad()
def accuracy(model: torch.nn.Module, data: Dataset) -> float:
    images, labels = next(iter(batches(data, len(data), shuffle=False)))
    return float((model.eval()(images).logits.argmax(1) == labels).float().mean())


def starting(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_A" in name}


@torch.no_grad()
def measured(model: PeftModel, start: dict[str, torch.Tensor]) -> dict[str, float]:
    """How far A is from its start, and what is added to the weights: norms over all adapters."""
    weights = dict(model.named_parameters())
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    norms = {
        "|A - A0|": [(weights[name] - a).norm() for name, a in start.items()],
        "|B A|": [layer.get_delta_weight("default").norm() for layer in layers],
    }
    return {name: float(torch.stack(values).norm()) for name, values in norms.items()}


def main(epochs: int) -> dict[str, dict[str, float]]:
    torch.manual_seed(0)
    task = digits.load("mirrored", seed=0, share=1)
    source = network()
    train(source, pytl.AdamW(source.parameters(), lr=2e-3), task.source, epochs)
    found = {}
    for name, pull in PULLS.items():
        torch.manual_seed(0)
        model = adapted(source)
        start = starting(model)
        groups = pytl.param_groups(model, head=HEAD, **pull, head_weight_decay=0.0, verbose=False)
        train(model, pytl.AdamW(groups, lr=5e-3), task.train, epochs)
        found[name] = measured(model, start) | {"accuracy": accuracy(model.merge_and_unload(), task.test)}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--epochs", type=int, default=15, help="on the source, and on the target (default: %(default)s)"
    )
    torch.set_num_threads(1)  # so small a network is slower with more
    for name, row in main(parser.parse_args().epochs).items():
        print(f"{name:13}" + "".join(f"{what} {value:5.2f}   " for what, value in row.items()))
