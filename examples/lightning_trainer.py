"""A byte-level Llama in Lightning's Trainer: first Python's code, then English prose, with and without L2-SP.

The texts are the standard library's: the source of some modules, and the language's reference that ``help()`` shows.
Perplexity is per byte, on passages that were not trained on. Nothing is downloaded.

    python examples/lightning_trainer.py
"""

import argparse
import copy
import inspect
import json
import math
import tarfile
import tempfile
import typing
import unittest.mock
from pathlib import Path
from pydoc_data.topics import topics

import lightning as L
import torch
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

import pytl
from pytl.integrations.lightning import RecorderCallback

LENGTH = 64  # bytes of a passage
HELD_OUT = 256  # passages


def passages(text: str) -> torch.Tensor:
    codes = torch.tensor(list(text.encode("ascii", "replace")))
    return codes[: len(codes) // LENGTH * LENGTH].view(-1, LENGTH)


def code() -> torch.Tensor:
    modules = (argparse, inspect, tarfile, typing, unittest.mock)
    return passages("".join(inspect.getsource(module) for module in modules))


def prose() -> torch.Tensor:
    return passages("".join(text for _, text in sorted(topics.items())))


def network() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


class Bytes(L.LightningModule):
    def __init__(self, model: LlamaForCausalLM, sp_decay: float) -> None:
        super().__init__()
        self.model, self.sp_decay = model, sp_decay

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return self.model(batch, labels=batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = pytl.param_groups(self.model, head=(), sp_decay=self.sp_decay, verbose=False)
        return pytl.AdamW(groups, lr=3e-3, max_grad_norm=1.0)


def trained(model: LlamaForCausalLM, data: torch.Tensor, steps: int, sp_decay: float = 0.0) -> float:
    """Trains on the passages that are not held out; returns the recorded distance from where the weights started."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_steps=steps,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
            callbacks=[RecorderCallback(every=10, out=folder)],
        )
        trainer.fit(Bytes(model.train(), sp_decay), DataLoader(data[HELD_OUT:], 16, shuffle=True))
        last = json.loads(Path(folder, "metrics.jsonl").read_text().splitlines()[-1])
    return math.hypot(*(value for name, value in last.items() if name.startswith("distance/")))


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, data: torch.Tensor) -> float:
    held_out = data[:HELD_OUT]
    return math.exp(model.eval()(held_out, labels=held_out).loss)


def main(steps: int) -> dict[str, dict[str, float]]:
    L.seed_everything(0, verbose=False)
    source = network()
    trained(source, code(), steps)
    found = {"before": {"prose": perplexity(source, prose()), "code": perplexity(source, code()), "distance": 0.0}}
    for name, sp_decay in (("plain", 0.0), ("L2-SP", 1.0)):
        torch.manual_seed(0)
        model = copy.deepcopy(source)
        distance = trained(model, prose(), steps, sp_decay)
        found[name] = {"prose": perplexity(model, prose()), "code": perplexity(model, code()), "distance": distance}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="on code, and on prose (default: %(default)s)")
    torch.set_num_threads(1)  # so small a network is slower with more
    for name, row in main(parser.parse_args().steps).items():
        print(f"{name:8}" + "".join(f"{what} {value:6.2f}   " for what, value in row.items()))
