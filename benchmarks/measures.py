"""Times the measures of `pytl.analysis` on a network of ResNet-18's size, and holds two against others' code.

A ResNet-18 (11.2 M weights, basic blocks, 10 classes) on 512 images of 32 x 32, made up; figures do not depend on their
content. The largest eigenvalue against SciPy's `eigsh` on products by `torch.func` (reverse over reverse), as one would
write it. Prints a table: seconds, what they were spent on, and the target.

    python benchmarks/measures.py
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.func import functional_call, grad, vjp
from torch.nn.functional import cross_entropy

from pytl import analysis

SAMPLES, SIZE, CLASSES, BATCH = 512, 32, 10, 128


def resnet18() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    sizes = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "embedding_size": 64}
    return ResNetForImageClassification(ResNetConfig(layer_type="basic", num_labels=CLASSES, **sizes)).eval()


def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    images, labels = torch.randn(SAMPLES, 3, SIZE, SIZE), torch.randint(0, CLASSES, (SAMPLES,))
    return [*zip(images.split(BATCH), labels.split(BATCH), strict=True)]


def textbook_eigenvalue(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """`eigsh` with its defaults on the products that `torch.func` gives."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [w.numel() for w in weights.values()]

    def loss(weights: dict[str, torch.Tensor], images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(functional_call(model, weights, (images,)).logits, labels)

    def product(vector: np.ndarray) -> np.ndarray:
        pieces = torch.from_numpy(vector.astype(np.float32)).split(sizes)
        along = {name: piece.view_as(w) for (name, w), piece in zip(weights.items(), pieces, strict=True)}
        total = torch.zeros(sum(sizes))
        for images, labels in batches:
            _, pull = vjp(partial(grad(loss), images=images, labels=labels), weights)
            total += torch.cat([x.flatten() for x in pull(along)[0].values()]) * len(labels) / SAMPLES
        return total.numpy()

    operator = LinearOperator((sum(sizes), sum(sizes)), matvec=product, dtype=np.float32)
    start = np.random.default_rng(0).standard_normal(sum(sizes)).astype(np.float32)
    return float(eigsh(operator, 1, which="LA", v0=start, tol=1e-4, return_eigenvectors=False)[0])


def timed(label: str, target: str, run: Callable[[], str]) -> None:
    began = time.perf_counter()
    found = run()
    print(f"{label:34}  {time.perf_counter() - began:8.2f} s  {target:10}  {found}", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--points", type=int, default=21, help="of a landscape's axis (default: %(default)s)")
    points = options.parse_args().points
    model, batches = resnet18(), data()
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for p in moved.parameters():
            p.add_(0.01 * torch.randn_like(p))
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {SAMPLES} images of {SIZE} x {SIZE}\n")
    timed("distance", "1 s", lambda: f"|w - w0| {analysis.distance(moved, model).total:.4g}")
    timed("largest eigenvalue", "120 s", lambda: _eigenvalue(model, batches))
    timed("  by eigsh and torch.func", "", lambda: f"{textbook_eigenvalue(model, batches):.5g}")
    timed("trace, 30 products", "", lambda: _trace(model, batches))
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "landscape.json")
        for label, target in ((f"landscape, {points} x {points}", "300 s"), ("  again, from its cache", "")):
            timed(label, target, lambda: _landscape(model, batches, points, cache))
    timed("smoothness, 5 steps", "", lambda: f"beta {analysis.smoothness(model, batches).beta:.4g}")
    timed("gradient energy", "", lambda: f"{len(analysis.gradient_energy(model, batches).energies)} matrices")
    timed("forgetting", "", lambda: f"{analysis.forgetting(model, moved, batches).agreement:.0%} answered alike")


def _eigenvalue(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> str:
    found = analysis.sharpness(model, batches, trace=None)
    return f"{found.eigenvalues[0]:.5g}, {found.products} products, residual {found.residuals[0]:.1e}"


def _trace(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> str:
    found = analysis.sharpness(model, batches).trace
    assert found
    return f"{found.mean:.4g} ({found.low:.4g} to {found.high:.4g}); with the eigenvalue"


def _landscape(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]], points: int, cache: Path) -> str:
    found = analysis.loss_landscape(model, batches, points=points, cache=cache)
    return f"{points**2} points, {found.nonfinite} not finite"


if __name__ == "__main__":
    main()
