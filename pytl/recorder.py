"""Cheap measures of training, each so many steps, kept on the device until there are many."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pytl import metrics
from pytl.architecture import Head, unwrapped
from pytl.depth import depth_blocks, depths
from pytl.extras import require
from pytl.metrics import Record
from pytl.optim.base import Optimizer as PytlOptimizer
from pytl.optim.sharding import RankSums, here, part

_TOGETHER = 1 << 26  # bytes of weights whose differences to their start are in memory at a time


class Recorder:
    """Writes a line of ``metrics.jsonl`` each `every` steps::

        recorder = pytl.Recorder(model, optimizer, "runs/mine/metrics.jsonl")
        for x, y in loader:
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            recorder.step(loss)
            optimizer.zero_grad()
        recorder.close()

    A line has ``step``, ``loss`` of the step's batch, and of each block (``layer1.0``; the head last)
    ``distance/BLOCK``: ``|w - w0|`` after the step; ``gradient/BLOCK``: ``|g|`` of the step; of pytl's optimizers also
    ``cosine/BLOCK``: of the task's gradient and the regulariser's, and ``penalty_cosine/BLOCK``, where a penalty's
    gradient is kept apart. What is not finite is left out, as cosines are where there is no regulariser.

    Where the parameters are sharded, every rank has a recorder, and all but one a path of None.

    Cost: a read of the weights, their start and the gradients each `every` steps; on the device, which is waited for
    only each `capacity` lines. Memory: the starting weights; 64 MiB, or the largest parameter; and for each of
    `capacity` lines 56 bytes a parameter tensor.

    Args:
        model: any module whose parameters are on one device, or sharded.
        optimizer: of its parameters.
        path: the file; lines are added to it. None: nothing is written here.
        every: steps between lines.
        head: as in ``pytl.param_groups``.
        start: w0 by name; None: the weights as they are now.
        tensorboard: a folder for TensorBoard's events as well.
        capacity: lines that are kept on the device.

    Attributes:
        steps: how often `step` was called.

    Raises:
        ValueError: ``every`` or ``capacity`` < 1; the optimizer has no parameter of the model.
        ImportError: TensorBoard is asked for and missing.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        path: str | Path | None,
        *,
        every: int = 10,
        head: Head | None = None,
        start: Mapping[str, Tensor] | None = None,
        tensorboard: str | Path | None = None,
        capacity: int = 256,
    ) -> None:
        for name, value in (("every", every), ("capacity", capacity)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1; got {value}")
        self.steps, self.every, self._capacity = 0, every, capacity
        self._path = None if path is None else Path(path)
        self._optimizer = optimizer
        blocks, named = depth_blocks(model, head), {p: name for name, p in unwrapped(model).named_parameters()}
        depth = depths(blocks)
        stepped = [p for group in optimizer.param_groups for p in group["params"]]
        known = [(row, p) for row, p in enumerate(stepped) if p in named]
        if not known:
            raise ValueError("optimizer must have parameters of the model; got none")
        self._params, device = [p for _, p in known], known[0][1].device
        self._sums = RankSums(self._params)
        rows = [row for row, _ in known]
        self._rows = None if rows == [*range(len(stepped))] else torch.tensor(rows, device=device)
        present = sorted({depth[named[p]] for p in self._params})
        self._blocks = [blocks[place].name for place in present]
        self._place = torch.tensor([present.index(depth[named[p]]) for p in self._params], device=device)
        with torch.no_grad():
            starts = [p if start is None else part(start[named[p]], p).to(p) for p in self._params]
            self._start = [_apart(here(w0), here(p)) for w0, p in zip(starts, self._params, strict=True)]
        self._kept: list[tuple[int, Tensor, Tensor]] = []
        self._events = None if tensorboard is None or path is None else partial(_writer(), str(tensorboard))
        self._writer: Any = None

    @torch.no_grad()
    def step(self, loss: Tensor | float | None = None) -> None:
        """After the optimizer's step, before its gradients are dropped."""
        self.steps += 1
        if self.steps % self.every:
            return
        if not isinstance(loss, Tensor):  # made there: a copy from the host would wait
            loss = torch.full((), float("nan") if loss is None else loss, device=self._place.device)
        self._kept.append((self.steps, loss.detach().to(self._place.device, torch.float64), self._table()))
        if len(self._kept) >= self._capacity:
            self.flush()

    def flush(self) -> None:
        """Writes what is kept; waits for the device."""
        if not self._kept or self._path is None:
            self._kept.clear()
            return
        steps, losses, tables = zip(*self._kept, strict=True)
        rows = torch.cat([torch.stack(losses)[:, None], *self._by_block(torch.stack(tables))], 1).tolist()
        records = [self._record(step, row) for step, row in zip(steps, rows, strict=True)]
        self._kept.clear()
        metrics.append(self._path, records)
        if self._events and self._writer is None:  # events of later steps are of a run that was killed
            self._writer = self._events(purge_step=records[0]["step"])
        for record in records if self._writer else ():
            for name, number in record.items():
                if name != "step":
                    self._writer.add_scalar(name, number, record["step"])

    def close(self) -> None:
        """Writes what is kept, and closes TensorBoard's file."""
        self.flush()
        if self._writer:
            self._writer.close()

    def go_on(self, steps: int) -> None:
        """Goes on after so many steps, as a resumed run does: lines of later ones are taken out of the file."""
        self.steps = steps
        if self._path is None:
            return
        found = metrics.read(self._path)
        metrics.rewrite(self._path, [record for record in found if (record.get("step") or 0) <= steps])

    def _record(self, step: int, row: Sequence[float]) -> Record:
        named = zip(self._names(), row, strict=True)
        return {"step": step, **{name: value for name, value in named if math.isfinite(value)}}

    def _names(self) -> Iterator[str]:
        yield "loss"
        quantities = ["distance", "gradient"]
        if isinstance(self._optimizer, PytlOptimizer):
            quantities += ["cosine", "penalty_cosine"]
        for quantity in quantities:
            yield from (f"{quantity}/{block}" for block in self._blocks)

    def _table(self) -> Tensor:
        """A row a parameter, float64: ``|w - w0|^2``, and ``|g|^2`` or the Gram numbers of both regularisers."""
        distances = self._squared_distances()[:, None]
        if not isinstance(self._optimizer, PytlOptimizer):
            squares = torch.cat([distances, self._squared_gradients()[:, None]], 1)
            self._sums.over(squares)
            return squares
        self._sums.over(distances)
        if self._optimizer._plan is None:  # a scaler has skipped the first steps
            return torch.cat([distances, distances.new_full((len(distances), 6), float("nan"))], 1)
        grams = [self._optimizer.gram, self._optimizer.penalty_gram]
        return torch.cat([distances, *(gram if self._rows is None else gram[self._rows] for gram in grams)], 1)

    def _by_block(self, tables: Tensor) -> Iterator[Tensor]:
        """[lines, blocks] of each quantity, of tables ``[lines, parameters, columns]``."""
        sums = tables.new_zeros(len(tables), len(self._blocks), tables.shape[2]).index_add_(1, self._place, tables)
        distances, gg, *more = sums.unbind(2)
        yield from (distances.sqrt(), gg.sqrt())
        if more:
            gr, rr, _, gh, hh = more
            yield from (gr / (gg * rr).sqrt(), gh / (gg * hh).sqrt())

    def _squared_distances(self) -> Tensor:
        found: list[Tensor] = []
        first, size = 0, 0
        for end, p in enumerate(self._params, 1):
            size += here(p).nbytes
            if size >= _TOGETHER or end == len(self._params):
                moved = torch._foreach_sub([here(w) for w in self._params[first:end]], self._start[first:end])
                found += _norms(moved)
                first, size = end, 0
        return torch.stack(found).double().square()

    def _squared_gradients(self) -> Tensor:
        zero = self._place.new_zeros((), dtype=torch.float64)
        present = [part(p.grad, p) for p in self._params if p.grad is not None]
        norms = iter(_norms(present))
        found = [zero if p.grad is None else next(norms) for p in self._params]
        return torch.stack(found).double().square()


def _apart(start: Tensor, p: Tensor) -> Tensor:
    """A copy where it is the weight itself, as in a state dict."""
    return start.clone() if start.data_ptr() == p.data_ptr() else start


def _norms(tensors: list[Tensor] | tuple[Tensor, ...]) -> list[Tensor]:
    """At least in float32: in half precision a norm has three digits, and overflows."""
    halves = any(t.dtype.itemsize == 2 for t in tensors)
    return [*torch._foreach_norm(tensors, dtype=torch.float64 if halves else None)] if tensors else []


def _writer() -> Any:
    require("tensorboard", "tensorboard")
    return require("torch.utils.tensorboard", "tensorboard").SummaryWriter
