"""A BERT that tells Python's code from its comments and docstrings, in Hugging Face's Trainer: L2-SP, DTNH and DELTA.

The source task is the same with the standard library's lines in reverse. Nothing is downloaded.

    python examples/hf_trainer.py
"""

import argparse
import ast
import inspect
import json
import tempfile
import tokenize
from io import StringIO
from types import ModuleType

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import pytl
from pytl.integrations import hf

LENGTH = 48  # bytes of a line
MODULES = (ast, inspect, json, tempfile, tokenize, argparse)


class Lines(Dataset):
    """Lines of the standard library's source, as bytes: 1 for comments and docstrings, 0 for code."""

    def __init__(self, modules: tuple[ModuleType, ...], backwards: bool = False) -> None:
        found = [line for module in modules for line in labelled(inspect.getsource(module))]
        self.rows = [(text[::-1] if backwards else text, label) for text, label in found]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        text, label = self.rows[index]
        codes = list(text.encode()[:LENGTH])
        return {
            "input_ids": torch.tensor(codes + [0] * (LENGTH - len(codes))),
            "attention_mask": torch.tensor([1] * len(codes) + [0] * (LENGTH - len(codes))),
            "labels": torch.tensor(label),
        }


def labelled(source: str) -> list[tuple[str, int]]:
    """Lines that are not empty, and whether they lie in a comment or a string of several lines."""
    prose = set()
    for token in tokenize.generate_tokens(StringIO(source).readline):
        alone = token.line.strip().startswith("#")
        if (token.type == tokenize.COMMENT and alone) or (token.type == tokenize.STRING and '"""' in token.string):
            prose.update(range(token.start[0], token.end[0] + 1))
    lines = [(number, line.strip()) for number, line in enumerate(source.splitlines(), 1)]
    return [(line, int(number in prose)) for number, line in lines if len(line) > 3]


def network() -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=256,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
    )
    return BertForSequenceClassification(config)


def arguments(folder: str, steps: int) -> TrainingArguments:
    quiet = {"save_strategy": "no", "report_to": [], "disable_tqdm": True}
    return TrainingArguments(folder, max_steps=steps, per_device_train_batch_size=16, use_cpu=True, **quiet)


def main(steps: int) -> dict[str, float]:
    torch.manual_seed(0)
    train, held_out = Lines(MODULES[:4]), Lines(MODULES[4:])
    model = network()
    with tempfile.TemporaryDirectory() as folder:
        ours = hf.optimizer(lr=1e-3, verbose=False)
        source = Lines(MODULES[:4], backwards=True)
        Trainer(model, arguments(folder, steps), train_dataset=source, optimizer_cls_and_kwargs=ours).train()
        model.classifier.reset_parameters()

        with pytl.DELTA(model, ["bert.encoder.layer.1"], strength=0.01) as delta:
            trainer = hf.PenaltyTrainer(
                model,
                arguments(folder, steps),
                train_dataset=train,
                eval_dataset=held_out,
                penalty=delta,
                optimizer_cls_and_kwargs=hf.optimizer(lr=1e-3, head="classifier", sp_decay=0.01, direction="dtnh"),
                callbacks=[hf.RecorderCallback(every=10)],
                compute_metrics=lambda found: {"accuracy": float((found[0].argmax(-1) == found[1]).mean())},
            )
            trainer.train()
            return trainer.evaluate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps", type=int, default=300, help="on the source, and on the target (default: %(default)s)"
    )
    print(f"accuracy on held-out lines: {main(parser.parse_args().steps)['eval_accuracy']:.1%}")
