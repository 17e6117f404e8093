"""The loop around the optimizer: batches in, a trained network, its history and its checkpoints out."""

from pytl.training.fine_tuning import Result, finetune

__all__ = ["Result", "finetune"]
