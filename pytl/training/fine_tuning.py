"""`finetune`: a network, its data and a method in; a trained network and its history out."""

import random
from collections.abc import Callable, Iterable
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from pytl import files
from pytl.metrics import Record
from pytl.plan import TransferPlan
from pytl.progress import bar
from pytl.recorder import Recorder
from pytl.regularizers import Penalty
from pytl.rifle import RIFLE
from pytl.training import methods, noise, penalties
from pytl.training.journal import Journal
from pytl.training.run import Parts, Run
from pytl.training.settings import Settings


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        model: with the last epoch's weights, in evaluation mode.
        optimizer: holds the starting point and the last step's Gram numbers.
        history: one record an epoch, as in ``metrics.jsonl``.
    """

    model: nn.Module
    optimizer: Optimizer
    history: list[Record]

    @property
    def accuracy(self) -> float | None:
        """On the evaluation data after the last epoch; never the best epoch's, which would be chosen on them."""
        return self.history[-1].get("accuracy")


def finetune(
    model: nn.Module,
    train_loader: Iterable[Any],
    eval_loader: Iterable[Any] | None = None,
    *,
    method: str | methods.Method | None = None,
    plan: TransferPlan | str | Path | None = None,
    optimizer: str | Optimizer = "sgd",
    penalty: Penalty | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    epochs: int = 10,
    lr: float = 0.01,
    schedule: str = "cosine",
    head: str | None = None,
    device: str | torch.device | None = None,
    amp: str | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    snapshots: int = 0,
    record: int | None = None,
    tensorboard: str | Path | None = None,
    on_epoch: Callable[[Record], None] | None = None,
    progress: bool = True,
) -> Result:
    """Fine-tunes a pre-trained classifier, in place.

    Batches are ``(inputs, labels)``, ``(inputs, labels, ids)`` or mappings with ``"labels"``; the model returns logits
    or an object with `logits`.
    A killed run that is resumed ends with the bits of an uninterrupted one, in the middle of an epoch too: the loader's
    order is replayed and the random numbers of that moment are put back. (Augmentation in `persistent_workers` is not.)

    Args:
        model: pre-trained, with a new head.
        train_loader: a DataLoader, or any iterable that starts anew at each epoch.
        eval_loader: what loss and accuracy are measured on after each epoch.
        method: a name in `pytl.training.methods.METHODS`, several joined by ``+``, or a `Method`. None: ``"plan"``
            where a plan is given, else ``"l2sp"``.
        plan: what is transferred, block by block, or the file of it; for methods that take one.
        optimizer: ``"sgd"``, ``"adamw"``, or an optimizer of your own, which then stands for `method`, `lr` and `head`.
        penalty: a regulariser made for `model`, in place of those of `method`; it is called with each batch and not
            closed.
        loss: (logits, labels) -> mean over the batch.
        epochs: passes over `train_loader`.
        lr: learning rate at the start.
        schedule: ``"cosine"``, from `lr` to 0 over the run, step by step, or ``"constant"``.
        head: name of the new head's module; None: found by `pytl.param_groups`.
        device: where to train; None: where the model is.
        amp: ``"bf16"`` or ``"fp16"`` (with loss scaling); None trains in the model's precision.
        seed: of torch, NumPy and Python, set before a penalty is prepared and before the first epoch; None leaves them.
        out: folder for ``start.pt``, the weights before the first step, ``checkpoint.pt``, written at each epoch's end,
            and ``metrics.jsonl``; None writes nothing.
        resume: go on from `out`'s checkpoint if there is one; a finished run is returned as it is.
        checkpoint_every: steps between checkpoints within an epoch.
        snapshots: how many times on the way the weights alone are kept, as ``snapshots/step-000120.pt``, evenly.
        record: steps between lines of a `pytl.Recorder` in ``metrics.jsonl``; None: epochs alone are recorded.
        tensorboard: a folder for the recorder's events.
        on_epoch: called with each epoch's record.
        progress: a bar on a terminal; never elsewhere.

    Raises:
        ValueError: an argument is out of range, or `resume` meets another run's checkpoint (`ResumeError`).
        FileExistsError: `out` holds a checkpoint and `resume` is False.
        OSError: a checkpoint cannot be written; the previous one is whole.
        Interrupted: Ctrl-C; the state is saved, where `out` is given.
    """
    settings = Settings(epochs, lr, schedule, amp, seed, checkpoint_every, snapshots)
    if record is not None and record < 1:
        raise ValueError(f"record must be >= 1; got {record}")
    for name, asked in {"resume": resume, "snapshots": snapshots, "record": record}.items():
        if asked and out is None:
            raise ValueError(f"{name} needs out, the run's folder; got None")
    if tensorboard is not None and record is None:
        raise ValueError("tensorboard needs record, the steps between two of its events; got None")
    folder = None if out is None else files.writable_folder(out)
    place = _device_of(model) if device is None else torch.device(device)
    model.to(place)
    _seed(seed)
    chosen = _chosen(method, plan, optimizer)
    setting = penalties.Setting(model, train_loader, loss, place, head, folder, progress)
    if chosen.plan is not None and chosen.penalties:
        setting.keep_start()  # before the plan renews blocks
    built = optimizer if isinstance(optimizer, Optimizer) else chosen.optimizer(model, optimizer, lr, head, seed or 0)
    with (
        noise.of(chosen, model, head, loss) as training_loss,
        penalties.of(chosen, setting) if penalty is None else nullcontext(penalty) as regulariser,
    ):
        fingerprint = _fingerprint(chosen, built, model, settings)
        if chosen.penalties:
            fingerprint["source"] = setting.start_digest
        parts = Parts(
            *(model, built, train_loader, eval_loader, loss, place),
            penalty=regulariser,
            rifle=_rifle(chosen, built, model, head),
            training_loss=training_loss,
            cycles=chosen.cycles or 1,
            recorder=_recorder(model, built, folder, record, head, tensorboard),
        )
        run = Run(parts, settings)
        journal = Journal(run, folder, fingerprint)
        if not journal.begin(resume):
            _seed(seed)
        recording = closing(parts.recorder) if parts.recorder else nullcontext()
        with bar(chosen.name, run.steps_total, run.steps_done, progress) as advance, recording:
            journal.fit(advance, on_epoch)
    model.eval()
    return Result(model, built, run.history)


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _chosen(
    method: str | methods.Method | None, plan: TransferPlan | str | Path | None, optimizer: str | Optimizer
) -> methods.Method:
    if isinstance(optimizer, Optimizer):
        return methods.Method("own optimizer")
    if method is None:
        method = "l2sp" if plan is None else "plan"
    chosen = methods.parse(method) if isinstance(method, str) else method
    return chosen.with_plan(TransferPlan.load(plan) if isinstance(plan, str | Path) else plan)


def _recorder(
    model: nn.Module,
    optimizer: Optimizer,
    folder: Path | None,
    every: int | None,
    head: str | None,
    tensorboard: str | Path | None,
) -> Recorder | None:
    """On the weights from which the run starts."""
    if every is None or folder is None:
        return None
    return Recorder(model, optimizer, folder / "metrics.jsonl", every=every, head=head, tensorboard=tensorboard)


def _rifle(
    method: methods.Method, optimizer: Optimizer, model: nn.Module, head: str | None
) -> Callable[[int], RIFLE] | None:
    if not method.periods:
        return None
    return lambda steps: RIFLE(head, optimizer, steps, method.periods or 1, model=model)


def _fingerprint(method: methods.Method, optimizer: Optimizer, model: nn.Module, settings: Settings) -> dict[str, Any]:
    """What a checkpoint must share with the run that goes on from it, as plain values."""
    groups = [
        {key: value for key, value in group.items() if value is None or isinstance(value, str | bool | int | float)}
        for group in optimizer.param_groups
    ]
    plan = asdict(settings)
    for free in ("checkpoint_every", "snapshots"):  # may change: they do not touch the result
        del plan[free]
    return {
        "method": method.name,
        "penalties": dict(method.penalties),
        "noise": dict(method.noise),
        "periods": method.periods or 1,
        "cycles": method.cycles or 1,
        "optimizer": type(optimizer).__name__,
        "groups": {str(index): group for index, group in enumerate(groups)},
        **plan,
        "parameters": {name: list(parameter.shape) for name, parameter in model.named_parameters()},
    }


def _seed(seed: int | None) -> None:
    if seed is None:
        return
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
