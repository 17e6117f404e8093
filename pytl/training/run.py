"""One training run: its loop, and the state that lets it stop at any step and go on to the same bits."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pytl.batch import Batch
from pytl.metrics import Record
from pytl.optim.base import Optimizer as PytlOptimizer
from pytl.periods import Periods
from pytl.plan import Unfreezing
from pytl.recorder import Recorder
from pytl.regularizers import Penalty
from pytl.rifle import RIFLE
from pytl.seeding import random_state, restore_random_state
from pytl.training import resets, terms
from pytl.training.records import conflicts
from pytl.training.settings import AMP_DTYPES, Settings


@dataclass(frozen=True)
class Parts:
    """What a run is made of."""

    model: nn.Module
    optimizer: Optimizer
    train_loader: Iterable[Any]
    eval_loader: Iterable[Any] | None
    loss: Callable[[Tensor, Tensor], Tensor]
    device: torch.device
    penalty: Penalty | None = None
    rifle: Callable[[int], RIFLE] | None = None
    """Of the steps in all."""
    training_loss: Callable[[Tensor, Tensor], Tensor] | None = None
    """Where another one is minimised than the one that is measured."""
    cycles: int = 1
    """Of the learning rate."""
    recorder: Recorder | None = None

    @property
    def directs(self) -> bool:
        """Whether a direction joins the penalty's gradient with the task's, or their sum will do."""
        return isinstance(self.optimizer, PytlOptimizer) and self.optimizer.directs


@dataclass
class Hooks:
    """What is told of the progress: each step, and each epoch's record; `check` may raise to stop between batches."""

    after_step: Callable[[], None] = lambda: None
    check: Callable[[], None] = lambda: None
    after_epoch: Callable[[Record], None] = lambda record: None


@dataclass
class Partial:
    """An epoch in progress."""

    random: dict[str, Any]  # at its start: the loader's order is replayed from it
    batches: int = 0
    samples: int = 0
    loss: float | Tensor = 0.0  # summed over samples; kept on the device, because reading it would wait
    lr: float = 0.0
    seconds: float = 0.0
    report: Record = field(default_factory=dict)
    terms: Record = field(default_factory=dict)
    resets: Record = field(default_factory=dict)


class Run:
    """Trains epoch by epoch; `state` may be taken whenever `Hooks` are called and `load`ed into a new run."""

    def __init__(self, parts: Parts, settings: Settings) -> None:
        self.parts, self.settings = parts, settings
        self.length = _length("train_loader", parts.train_loader)
        _length("eval_loader", parts.eval_loader)
        self.scheduler = LambdaLR(parts.optimizer, self._rate)
        self.scaler = torch.amp.GradScaler(parts.device.type, enabled=settings.amp == "fp16")
        self.rifle = None if parts.rifle is None else parts.rifle(self._known_steps("rifle"))
        frozen = any(group.get("frozen_until") for group in parts.optimizer.param_groups)
        self.unfreezing = Unfreezing(parts.optimizer, parts.model) if frozen else None
        self.history: list[Record] = []
        self.partial: Partial | None = None
        count = settings.snapshots
        last = self._known_steps("snapshots") if count else 0
        self.snapshots = {round(last * k / (count + 1)) for k in range(1, count + 1)}
        """Numbers of steps after which the weights are kept, evenly between the first and the last."""

    def _rate(self, step: int) -> float:
        if self.settings.schedule == "constant" and self.parts.cycles == 1:
            return 1.0
        return Periods(self._known_steps("schedule='cosine'"), self.parts.cycles).cosine(step)

    def _known_steps(self, what: str) -> int:
        if self.steps_total is None:
            hint = "; schedule='constant' does not" if "schedule" in what else ""
            raise TypeError(f"{what} needs a train_loader with a length{hint}")
        return self.steps_total

    @property
    def finished(self) -> bool:
        return len(self.history) >= self.settings.epochs

    @property
    def between_epochs(self) -> bool:
        """No batch of the epoch is done, or all are; an epoch's report is lost if it is left between the two."""
        return self.partial is None or self.partial.batches in (0, self.length)

    @property
    def steps_done(self) -> int:
        return self.scheduler.last_epoch

    @property
    def steps_total(self) -> int | None:
        """None where the loader does not know its length."""
        return None if self.length is None else self.settings.epochs * self.length

    def state(self) -> dict[str, Any]:
        """Everything the rest of the run depends on, as tensors and plain values."""
        return {
            "model": self.parts.model.state_dict(),
            "optimizer": self.parts.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rifle": self.rifle.state_dict() if self.rifle else None,
            "unfreezing": self.unfreezing.state_dict() if self.unfreezing else None,
            "random": random_state(self.parts.train_loader),
            "history": self.history,
            "partial": asdict(self.partial) if self.partial else None,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` returned."""
        self.parts.model.load_state_dict(state["model"])
        self.parts.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        if self.rifle:
            self.rifle.load_state_dict(state["rifle"])
        if self.unfreezing:
            self.unfreezing.load_state_dict(state["unfreezing"])
        self.history = list(state["history"])
        self.partial = Partial(**state["partial"]) if state["partial"] else None
        restore_random_state(state["random"], self.parts.train_loader)

    def fit(self, hooks: Hooks) -> None:
        """Trains to the last epoch; an exception from a hook leaves a state that can be saved."""
        while not self.finished:
            self._train(hooks)
            record = self._record(self._evaluate(hooks))
            self.history.append(record)
            self.partial = None
            hooks.after_epoch(record)

    def _train(self, hooks: Hooks) -> None:
        self.parts.model.train()
        if self.unfreezing:
            self.unfreezing.hold()
        batches, partial, began = self._remaining(), self._partial(), time.perf_counter()
        before = partial.batches
        for batch in batches:
            self._step(batch, partial)
            now = time.perf_counter()
            partial.seconds, began = partial.seconds + now - began, now
            hooks.after_step()
            if not self.between_epochs:
                hooks.check()
        if partial.batches > before:  # else it was read before the run was stopped
            partial.report = conflicts(self.parts.optimizer)

    def _partial(self) -> Partial:
        self.partial = self.partial or Partial(random_state(self.parts.train_loader))
        return self.partial

    def _remaining(self) -> Iterator[Any]:
        """The batches not yet done in this epoch, in the order that the epoch began with."""
        loader = self.parts.train_loader
        if hasattr(getattr(loader, "sampler", None), "set_epoch"):
            loader.sampler.set_epoch(len(self.history))  # type: ignore[attr-defined]
        now, partial = random_state(loader), self._partial()
        if not partial.batches:
            return iter(loader)
        restore_random_state(partial.random, loader)
        batches = iter(loader)
        for _ in range(partial.batches):
            next(batches, None)
        restore_random_state(now, loader)
        return batches

    def _step(self, batch: Any, partial: Partial) -> None:
        optimizer, one = self.parts.optimizer, Batch.of(batch, self.parts.device)
        partial.lr = float(optimizer.param_groups[0]["lr"])
        penalty = self.parts.penalty
        with self._autocast():
            if penalty:
                penalty.prepare(*one.inputs, ids=one.ids, **one.keywords)
            loss = (self.parts.training_loss or self.parts.loss)(one.logits(self.parts.model), one.labels)
            values = penalty.values(*one.inputs, ids=one.ids, **one.keywords) if penalty else {}
        self._backward(loss, values, partial)
        self.scaler.step(optimizer)
        self.scaler.update()
        if self.parts.recorder:
            self.parts.recorder.step(loss)
        self.scheduler.step()
        if self.unfreezing:
            self.unfreezing.step()
        if self.rifle:
            epochs = len(self.history) + (partial.batches + 1) / (self.length or 1)
            partial.resets |= resets.step(self.rifle, self.parts.model, [batch], self.parts.loss, epochs)
        optimizer.zero_grad()
        partial.loss = partial.loss + loss.detach().float() * len(one.labels)
        partial.samples += len(one.labels)
        partial.batches += 1

    def _backward(self, loss: Tensor, values: dict[str, Tensor], partial: Partial) -> None:
        """The penalty's gradient is kept apart where a direction needs it, and at an epoch's end for its record."""
        optimizer, penalty = self.parts.optimizer, self.parts.penalty
        if penalty is None:
            self.scaler.scale(loss).backward()
            return
        ends, apart = partial.batches + 1 == self.length, terms.Gradients()
        params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        value = torch.stack(list(values.values())).sum()
        if isinstance(optimizer, PytlOptimizer) and (ends or self.parts.directs):
            if ends:
                apart = terms.gradients_of(values, params, self.scaler)
            optimizer.take_penalty(value, self.scaler)
        else:
            loss = loss + value
        self.scaler.scale(loss).backward()
        if ends:
            partial.terms = terms.record_of(penalty, optimizer, params, apart)

    def _autocast(self) -> torch.autocast:
        dtype = AMP_DTYPES.get(self.settings.amp or "")
        return torch.autocast(self.parts.device.type, dtype, enabled=dtype is not None)

    @torch.no_grad()
    def _evaluate(self, hooks: Hooks) -> Record:
        """Loss and accuracy on the evaluation data; leaves the training's random numbers as they were."""
        if self.parts.eval_loader is None:
            return {}
        loader = self.parts.train_loader
        random, loss, right, samples = random_state(loader), 0.0, 0, 0
        self.parts.model.eval()
        try:
            for batch in self.parts.eval_loader:
                one = Batch.of(batch, self.parts.device)
                with self._autocast():
                    logits = one.logits(self.parts.model)
                    loss += float(self.parts.loss(logits, one.labels)) * len(one.labels)
                right += int((logits.argmax(-1) == one.labels).sum())
                samples += len(one.labels)
                hooks.check()
        finally:
            restore_random_state(random, loader)
        return {"loss": loss / samples, "accuracy": right / samples}

    def _record(self, scores: Record) -> Record:
        partial = self._partial()
        return {
            "epoch": len(self.history) + 1,
            "train_loss": float(partial.loss) / max(1, partial.samples),
            **scores,
            "lr": partial.lr,
            **partial.report,
            **partial.terms,
            **partial.resets,
            "seconds": round(partial.seconds, 4),
        }


def _length(name: str, loader: Iterable[Any] | None) -> int | None:
    """Batches in an epoch; None where the loader does not know."""
    try:
        length = len(loader) if isinstance(loader, Sized) else None
    except TypeError:  # a DataLoader over an IterableDataset
        return None
    if length == 0:
        raise ValueError(f"{name} must have >= 1 batch; got 0")
    return length
