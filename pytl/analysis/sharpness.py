"""How sharp a minimum is: the largest eigenvalues of the loss's Hessian, and its trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pytl import pictures
from pytl.analysis.objective import Loss, Objective, Protocol
from pytl.extras import require
from pytl.intervals import Interval, interval
from pytl.progress import bar

_DENSE = 64  # of so few weights the whole Hessian is computed
_TOLERANCE = 1e-4  # of an eigenvalue, relative


@dataclass(frozen=True)
class Sharpness:
    """The curvature of the mean loss at a network's weights.

    Attributes:
        eigenvalues: the largest of the Hessian, in descending order. Fewer than asked for where Lanczos' iteration did
            not find them in time.
        residuals: ``|H v - lambda v|`` of each, which bounds its error.
        trace: of the Hessian, with its 95% interval; None where it was not asked for. The interval has no width where
            the trace is exact.
        loss: at these weights.
        weights: how many.
        products: how many of the Hessian with a vector were computed.
        protocol: on what.
    """

    eigenvalues: tuple[float, ...]
    residuals: tuple[float, ...]
    trace: Interval | None
    loss: float
    weights: int
    products: int
    protocol: Protocol

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def plot(self, path: str | Path) -> None:
        """Draws a PNG: the eigenvalues, and the mean eigenvalue by the trace."""
        with pictures.drawing(path) as figure:
            axes = figure.subplots()
            ranks = range(1, len(self.eigenvalues) + 1)
            axes.bar(ranks, self.eigenvalues, color=pictures.COLOURS[1], width=0.6)
            axes.set(xlabel="rank", ylabel="eigenvalue of the Hessian (loss / weight²)", xticks=ranks)
            axes.set_title(f"Curvature on {self.protocol.samples} samples")
            if self.trace:
                mean = self.trace.mean / self.weights
                axes.axhline(mean, color=pictures.INK, linewidth=1, label=f"mean of all {self.weights:,}: {mean:.2g}")
                axes.legend()


def sharpness(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss = cross_entropy,
    *,
    top: int = 1,
    trace: int | None = 30,
    samples: int | None = 512,
    mode: str = "eval",
    batch: int | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Sharpness:
    """The largest eigenvalues of the Hessian of the mean loss, and its trace.

    Eigenvalues by ARPACK's Lanczos iteration (SciPy's ``eigsh``) on products with the Hessian. The trace by Hutch++
    (Meyer, Musco, Musco & Woodruff 2021, arXiv:2010.09649): exact on the range of a sketch, Hutchinson's mean of
    ``z' H z`` on the rest; its interval is Student's t over the z. The Hessians of networks with few weights, 64, are
    computed whole.

    Cost: 20 to 300 products for eigenvalues and ``trace`` more; each takes two to three gradients of the samples.
    Memory: 20 vectors of the weights' size and ``trace / 3``, beside those of a gradient. Model, statistics, gradients,
    modes and random numbers stay.

    Args:
        model, batches, loss, samples, mode, batch, dtype: as `pytl.analysis.Objective` has them; trained weights count.
        top: how many eigenvalues.
        trace: products that the trace may take, >= 6; None: no trace.
        seed: of the vectors that are drawn.
        progress: a bar on a terminal.

    Raises:
        ValueError: the loss is not finite; an argument out of range.
        ImportError: SciPy is missing.
    """
    objective = Objective(model, batches, loss, samples=samples, mode=mode, batch=batch, dtype=dtype)
    if top < 1 or top > objective.size:
        raise ValueError(f"top must be between 1 and the number of weights, {objective.size}; got {top}")
    if trace is not None and trace < 6:
        raise ValueError(f"trace must be None or >= 6 products; got {trace}")
    hessian = _Hessian(objective)
    value = objective.gradient()[0]
    cost = f"Hessian: 20 to 300 products, {objective.protocol.samples} samples each"
    with bar(cost, None, shown=progress) as hessian.advance:
        if objective.size <= max(_DENSE, top + 1):  # Lanczos' iteration finds all but the last
            whole = _whole(hessian)
            values = tuple(torch.linalg.eigvalsh(whole).flip(0)[:top].tolist())
            residuals = (0.0,) * top
            total = _exactly(float(whole.trace())) if trace else None
        else:
            values, residuals = _largest(hessian, top, seed)
            total = _trace(hessian, trace, seed) if trace else None
    return Sharpness(values, residuals, total, value, objective.size, hessian.products, objective.protocol)


class _Hessian:
    """The Hessian as a linear map of vectors [n], and how often it was asked."""

    def __init__(self, objective: Objective) -> None:
        self.objective, self.n = objective, objective.size
        self.products = 0
        self.advance: Callable[[], None] = lambda: None
        self.dtype = torch.promote_types(objective.start[0].dtype, torch.float32)

    def __call__(self, vector: Tensor) -> Tensor:
        pieces = vector.to(self.objective.device).split([w.numel() for w in self.objective.start])
        shaped = [piece.view(w.shape).to(w.dtype) for piece, w in zip(pieces, self.objective.start, strict=True)]
        product = self.objective.hessian_product(shaped)
        self.products += 1
        self.advance()
        return torch.cat([x.reshape(-1).to(self.dtype) for x in product])

    def drawn(self, generator: torch.Generator, columns: int) -> Tensor:
        """[n, columns] of 1 and -1."""
        signs = torch.randint(0, 2, (columns, self.n), generator=generator, dtype=torch.int8)
        return (2 * signs - 1).T.to(self.objective.device, self.dtype)


def _largest(hessian: _Hessian, top: int, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Eigenvalues and residuals; those that were found, where the iteration ends without the others.

    Raises:
        ValueError: none was found.
    """
    linalg = require("scipy.sparse.linalg", "cli")
    numpy_dtype = np.float64 if hessian.dtype == torch.float64 else np.float32

    def apply(vector: np.ndarray) -> np.ndarray:
        return hessian(torch.from_numpy(vector.astype(numpy_dtype, copy=False).ravel())).cpu().numpy()

    operator = linalg.LinearOperator((hessian.n, hessian.n), matvec=apply, dtype=numpy_dtype)
    start = np.random.default_rng(seed).standard_normal(hessian.n).astype(numpy_dtype)
    width = min(hessian.n - 1, max(2 * top + 1, 12))  # eigsh's 20 take 20 products before the first look
    try:
        values, vectors = linalg.eigsh(operator, top, which="LA", v0=start, ncv=width, tol=_TOLERANCE, maxiter=30)
    except linalg.ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
        if not len(values):
            raise ValueError(f"eigenvalues are not found after {hessian.products} products: {error}") from None
    except linalg.ArpackError as error:
        if apply(start).any():
            raise ValueError(f"eigenvalues are not found: {error}") from None
        return (0.0,) * top, (0.0,) * top  # H = 0
    order = np.argsort(-values)
    residuals = [np.linalg.norm(apply(vectors[:, i]) - values[i] * vectors[:, i]) for i in order]
    return tuple(float(values[i]) for i in order), tuple(map(float, residuals))


def _trace(hessian: _Hessian, products: int, seed: int) -> Interval:
    """Hutch++: a third of the products for the sketch, as many for its range, the others for the rest."""
    generator = torch.Generator().manual_seed(seed)
    sketched = min(products // 3, hessian.n)
    sketch = torch.stack([hessian(z) for z in hessian.drawn(generator, sketched).T], 1)
    basis = torch.linalg.qr(sketch)[0]
    within = sum(float((q * hessian(q)).double().sum()) for q in basis.T)
    rest = []
    for z in hessian.drawn(generator, products - 2 * sketched).T:
        outside = z - basis @ (basis.T @ z)
        rest.append(float((outside * hessian(outside)).double().sum()))
    found = interval(rest)
    return Interval(within + found.mean, within + found.low, within + found.high)


def _whole(hessian: _Hessian) -> Tensor:
    """[n, n], float64, symmetric to the bit."""
    columns = torch.eye(hessian.n, dtype=hessian.dtype, device=hessian.objective.device)
    rows = torch.stack([hessian(column) for column in columns]).double()
    return (rows + rows.T) / 2


def _exactly(value: float) -> Interval:
    return Interval(value, value, value)
