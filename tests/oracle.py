"""What the methods say, in float64 NumPy, written from their mathematics and from nothing of ``pytl``; and samples."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

PATHS = {"core": {"fused": True}, "reference": {"foreach": True}}
DIRECTIONS = ("sum", "dtnh", "grod", "pcgrad")
GRANULARITIES = ("tensor", "global")
SHAPES = ((3, 5), (), (0, 4), (7,), (1,), (9, 13))
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

DEFAULTS: dict[str, Any] = {
    "lr": 1e-3,
    "sp_decay": 0.0,
    "weight_decay": 0.0,
    "decoupled": False,
    "direction": "sum",
    "granularity": "tensor",
    "maximize": False,
    "momentum": 0.0,
    "dampening": 0.0,
    "nesterov": False,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "amsgrad": False,
}


def array(tensor: Tensor) -> np.ndarray:
    """In float64, wherever the tensor lies."""
    return tensor.detach().cpu().double().numpy()


def share(dot: float, square: float) -> float:
    usable = np.isfinite(square) and square >= np.finfo(np.float64).tiny
    return dot / square if usable else 0.0


def weights_of(direction: str, q: float, s: float, rr: float) -> tuple[float, float]:
    """(c_g, c_r) of d = c_g g + c_r r, for q = <g,g>, s = <g,r>, rr = <r,r>."""
    if direction == "dtnh":
        return 1 - share(min(0.0, s), q), 1.0
    if direction == "grod":
        return 1 - share(s, q), 1.0
    if direction == "pcgrad":
        return 1 - share(min(0.0, s), q), 1 - share(min(0.0, s), rr)
    return 1.0, 1.0


def dot(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum(a * b))


class Oracle:
    """SGD (``kind="sgd"``) or Adam over arrays: ``options`` for all of them, ``each`` for what one has of its own."""

    def __init__(
        self,
        kind: str,
        weights: Sequence[Tensor],
        options: Mapping[str, Any],
        *,
        each: Sequence[Mapping[str, Any]] | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        self.kind, self.max_grad_norm = kind, max_grad_norm
        self.weights = [array(w).copy() for w in weights]
        self.starts = [w.copy() for w in self.weights]
        self.options = [DEFAULTS | dict(options) | dict(own) for own in each or [{}] * len(self.weights)]
        self.steps = [0] * len(self.weights)
        self.states: list[dict[str, np.ndarray]] = [{} for _ in self.weights]

    def step(self, gradients: Sequence[Tensor | None], penalties: Sequence[Tensor] | None = None) -> None:
        self.present = [i for i, g in enumerate(gradients) if g is not None]
        self.g, self.r, self.h = {}, {}, {}
        for i in self.present:
            w, o = self.weights[i], self.options[i]
            self.g[i] = (-1 if o["maximize"] else 1) * array(gradients[i])  # type: ignore[arg-type]
            self.r[i] = o["sp_decay"] * (w - self.starts[i]) + o["weight_decay"] * w
            self.h[i] = np.zeros_like(w) if penalties is None else array(penalties[i])
            if not o["decoupled"]:
                self.r[i], self.h[i] = self.r[i] + self.h[i], np.zeros_like(w)
        self.gram = {i: self._gram_of(i, self.r) for i in self.present}
        fed, beside = self._directions()
        self.fed = self._clipped(fed)
        for i in self.present:
            self.steps[i] += 1
            o = self.options[i]
            self.weights[i] = self.weights[i] - o["lr"] * (self._update(i, self.fed[i]) + beside[i])

    def _gram_of(self, i: int, r: Mapping[int, np.ndarray]) -> np.ndarray:
        return np.array([dot(self.g[i], self.g[i]), dot(self.g[i], r[i]), dot(r[i], r[i])])

    def _weights(self, i: int, r: Mapping[int, np.ndarray]) -> tuple[float, float]:
        o = self.options[i]
        alike = [i]
        if o["granularity"] == "global":
            rule = (o["direction"], "global")
            alike = [j for j in self.present if (self.options[j]["direction"], self.options[j]["granularity"]) == rule]
        return weights_of(o["direction"], *sum(self._gram_of(j, r) for j in alike))

    def _directions(self) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
        fed, beside = {}, {}
        for i in self.present:
            pull_g, pull_r = self._weights(i, self.r)
            if self.options[i]["decoupled"]:
                penalty_g, penalty_r = self._weights(i, self.h)
                fed[i] = penalty_g * self.g[i] + penalty_r * self.h[i]
                beside[i] = (pull_g - 1) * self.g[i] + pull_r * self.r[i]
            else:
                fed[i], beside[i] = pull_g * self.g[i] + pull_r * self.r[i], np.zeros_like(self.g[i])
        return fed, beside

    def _clipped(self, fed: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        if self.max_grad_norm is None:
            return fed
        squares = {i: dot(d, d) for i, d in fed.items()}
        norm = sum(square for square in squares.values() if np.isfinite(square)) ** 0.5
        factor = min(1.0, self.max_grad_norm / (norm + 1e-6))
        return {i: factor * d if np.isfinite(squares[i]) else d for i, d in fed.items()}

    def _update(self, i: int, d: np.ndarray) -> np.ndarray:
        return self._sgd(i, d) if self.kind == "sgd" else self._adam(i, d)

    def _sgd(self, i: int, d: np.ndarray) -> np.ndarray:
        o, state = self.options[i], self.states[i]
        if o["momentum"] == 0:
            return d
        first = "b" not in state
        state["b"] = d if first else o["momentum"] * state["b"] + (1 - o["dampening"]) * d
        return d + o["momentum"] * state["b"] if o["nesterov"] else state["b"]

    def _adam(self, i: int, d: np.ndarray) -> np.ndarray:
        o, state, t = self.options[i], self.states[i], self.steps[i]
        beta1, beta2 = o["betas"]
        zeros = np.zeros_like(d)
        state["m"] = beta1 * state.get("m", zeros) + (1 - beta1) * d
        state["v"] = beta2 * state.get("v", zeros) + (1 - beta2) * d**2
        state["v_max"] = np.maximum(state.get("v_max", zeros), state["v"])
        v = state["v_max"] if o["amsgrad"] else state["v"]
        denominator = np.sqrt(v / (1 - beta2**t)) + o["eps"]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(state["m"] == 0, 0.0, state["m"] / (1 - beta1**t) / denominator)


# Samples:


def draw(seed: int, shapes: Sequence[Sequence[int]] = SHAPES, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Normal draws on the default device, the same values in each dtype that holds bfloat16's."""
    return [
        tensor.to(torch.get_default_device(), dtype, copy=True) for tensor in _drawn(seed, tuple(map(tuple, shapes)))
    ]


@functools.lru_cache(maxsize=64)
def _drawn(seed: int, shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    generator = torch.Generator("cpu").manual_seed(seed)
    return [torch.randn(shape, generator=generator, device="cpu").bfloat16() for shape in shapes]


def parameters(
    seed: int = 0, shapes: Sequence[Sequence[int]] = SHAPES, dtype: torch.dtype = torch.float64
) -> list[Parameter]:
    return [Parameter(tensor) for tensor in draw(seed, shapes, dtype)]


def give(params: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    for p, g in zip(params, gradients, strict=True):
        p.grad = None if g is None else g.to(p.dtype)


def give_penalties(optimizer: Any, params: Sequence[Tensor], penalties: Sequence[Tensor]) -> None:
    """Takes a penalty whose gradient is the one wanted."""
    optimizer.take_penalty(sum((p * h.to(p.dtype)).sum() for p, h in zip(params, penalties, strict=True)))


def copy_of(optimizer: torch.optim.Optimizer) -> Any:
    """All that a failed call must leave as it is: weights, state and groups."""
    weights = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    state = {key: dict(value) for key, value in optimizer.state.items()}
    return copy.deepcopy((weights, list(state.values()), groups, [len(g["params"]) for g in optimizer.param_groups]))


def assert_same(a: Any, b: Any) -> None:
    """Bit for bit, through lists and dicts."""
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True) if isinstance(a, Tensor) else None
    if isinstance(a, Mapping):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif not isinstance(a, Tensor):
        assert a == b


def relative_error(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """|found - expected| / |expected| over all tensors, in float64."""
    flat = [np.concatenate([np.asarray(x, dtype=np.float64).ravel() for x in xs]) for xs in (found, expected)]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))


def doubles(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    return [array(tensor) for tensor in tensors]
