"""How ranks train in the tests of distributed training, and one process with the whole batch: networks, data, loops."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import pytl

BATCH = 8
FIRST_STEPS = 3
WRAPPERS = ("ddp", "fsdp2")
DIRECTIONS = ("sum", "dtnh", "grod")
GRANULARITIES = ("tensor", "global")


@dataclass(frozen=True)
class Case:
    """One way to train. ``wrapper`` "none" is one process with the whole batch."""

    wrapper: str
    direction: str = "dtnh"
    granularity: str = "tensor"
    penalty: str = ""
    """"apart": by ``take_penalty``; "in the loss"; "": none."""
    parts: int = 1
    dtype: str = "float64"
    method: str = "SGD"
    clip: str = ""
    """"own": by ``max_grad_norm``; "torch": by ``clip_grad_norm_``; "": not at all."""
    start: str = "mapping"
    """Or "file", or "": the weights at the first step."""
    scalar: bool = False
    """With a 0-dim parameter, which FSDP2 is told to ignore: it is no DTensor."""

    def __str__(self) -> str:
        return " ".join(str(value) for value in asdict(self).values() if value)


MATRIX = [
    Case(wrapper, direction, granularity, penalty, parts, dtype, method)
    for wrapper, direction, granularity, penalty, parts, (dtype, method) in product(
        WRAPPERS,
        DIRECTIONS,
        GRANULARITIES,
        ("", "apart"),
        (1, 4),
        (("float32", "AdamW"), ("float64", "AdamW"), ("float64", "SGD")),
    )
]
CLIPPED = [
    Case(wrapper, direction, granularity, method=method, clip=clip)
    for wrapper, (direction, granularity), method, clip in product(
        WRAPPERS, (("sum", "tensor"), ("grod", "global")), ("SGD", "AdamW"), ("own", "torch")
    )
]
MESHES = [
    Case(wrapper, direction, granularity, penalty, clip="own")
    for wrapper, (direction, granularity), penalty in product(
        ("hsdp-1-2", "hsdp-2-1"), (("dtnh", "tensor"), ("grod", "global")), ("", "apart")
    )
]
OTHERS = [
    *[Case("fsdp2", "sum", penalty="in the loss", parts=4, method=method) for method in ("SGD", "AdamW")],
    *[Case(wrapper, start="file", dtype="float32") for wrapper in WRAPPERS],
    *[Case(wrapper, start="", method="AdamW") for wrapper in WRAPPERS],
    *[
        Case(wrapper, direction="pcgrad", granularity=granularity)
        for wrapper in WRAPPERS
        for granularity in GRANULARITIES
    ],
    *[Case(wrapper, direction="own rule", granularity="global", clip="own") for wrapper in WRAPPERS],
]
WITH_SCALAR = [
    Case("fsdp2", "dtnh", granularity, penalty, scalar=True, clip=clip)
    for granularity, penalty, clip in product(GRANULARITIES, ("", "apart"), ("", "own"))
]
FOUR = [
    Case(wrapper, direction, granularity, penalty, clip="own")
    for wrapper, (direction, granularity), penalty in product(
        ("fsdp2", "hsdp-2-2"), (("dtnh", "tensor"), ("grod", "global")), ("", "apart")
    )
]
ON_TWO = [*MATRIX, *CLIPPED, *MESHES, *OTHERS, *WITH_SCALAR]


class Cautious(pytl.Direction):
    """A rule of one's own, in Python: of the regulariser half, where it opposes the task."""

    name = "own rule"

    def weights(self, gg: Tensor, gr: Tensor, rr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(gg), 1 - 0.5 * (gr < 0).double()


# The network, its data, its start:


class Network(nn.Module):
    """Shards that are uneven (5 rows over two ranks), or empty (1 row); a frozen layer; one without gradients."""

    def __init__(self, width: int = 5, scalar: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(7, width)
        self.body = nn.Linear(width, 6)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.gate = nn.Linear(6, 1)
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.tensor(1.5)) if scalar else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.frozen(self.body(self.stem(x).tanh()).tanh()).tanh()
        y = self.head(x * self.gate(x).sigmoid())
        return y if self.scale is None else y * self.scale


def network(case: Case, seed: int = 0) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Network(scalar=case.scalar).to(getattr(torch, case.dtype))


def source(case: Case) -> Network:
    """The network that it started as: other weights, so that the pull counts from the first step."""
    model = network(case)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=generator))
    return model


def batch(step: int, case: Case) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 7, generator=generator, dtype=torch.float64)
    return x.to(getattr(torch, case.dtype)), torch.randint(0, 3, (BATCH,), generator=generator)


def whole(tensor: Tensor) -> Tensor:
    """A copy of all of it, on every rank."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().clone()


def weights_of(model: Any) -> list[Tensor]:
    return [whole(p) for p in model.parameters()]


# Training:


def this_rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def share_of_rank() -> slice:
    size = BATCH // world_size()
    return slice(size * this_rank(), size * (this_rank() + 1))


def mesh_of(wrapper: str) -> DeviceMesh:
    if wrapper == "fsdp2":
        return init_device_mesh("cpu", (world_size(),))
    sizes = tuple(int(size) for size in wrapper.split("-")[1:])
    return init_device_mesh("cpu", sizes, mesh_dim_names=("replicate", "shard"))


def sharded(model: Any, mesh: DeviceMesh, **options: Any) -> Any:
    ignored = {p for p in model.parameters() if p.dim() == 0}
    for layer in (model.stem, model.body):
        fully_shard(layer, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, ignored_params=ignored, **options)
    return model


def wrapped(model: Any, wrapper: str) -> Any:
    if wrapper == "none":
        return model
    if wrapper == "ddp":
        return DistributedDataParallel(model, find_unused_parameters=True)
    return sharded(model, mesh_of(wrapper))


def optimizer_of(model: Any, case: Case, folder: Path | None = None) -> Any:
    """Rates and strengths at which each rule, the penalty and clipping change the result."""
    options: dict[str, Any] = {"lr": 0.2, "momentum": 0.9}
    strengths = {"sp_decay": 0.2, "weight_decay": 0.1}
    params: Any = [*model.named_parameters()]
    if case.method == "AdamW":
        # with a small eps, a gradient near zero is divided by itself: its rounding would decide the sign of an update
        options = {"lr": 0.05, "eps": 1e-2}
        params = pytl.param_groups(model, head="head", **strengths, decay_norm_and_bias=True, verbose=False)
        strengths = {}
    direction = Cautious() if case.direction == "own rule" else case.direction
    return getattr(pytl, case.method)(
        params,
        **options,
        **strengths,
        direction=direction,
        granularity=case.granularity,
        max_grad_norm=0.05 if case.clip == "own" else None,
        start=start_of(case, params, folder),
    )


def start_of(case: Case, params: list[Any], folder: Path | None) -> Any:
    if not case.start:
        return None
    pairs = [pair for one in params for pair in (one["params"] if isinstance(one, dict) else [one])]
    state = source(case).state_dict()
    start = {name: state[name] for name, _ in pairs}
    if case.start == "mapping":
        return start
    assert folder is not None
    path = folder / f"start-{case.dtype}-{this_rank()}.safetensors"
    save_file(start, path)
    return path


@contextlib.contextmanager
def micro_batch(run: Any, case: Case, last: bool) -> Iterator[None]:
    """Gradients are averaged with the last one only, but where FSDP2 takes a penalty."""
    if isinstance(run, DistributedDataParallel) and not last:
        with run.no_sync():
            yield
        return
    if isinstance(run, FSDPModule):
        run.set_requires_gradient_sync(last or bool(case.penalty))
    yield


def train(run: Any, model: Any, case: Case, opt: Any, first: int = 0, steps: int = FIRST_STEPS) -> None:
    with contextlib.ExitStack() as stack:
        reg = None
        if case.penalty:
            reg = stack.enter_context(pytl.DELTA(run, ["stem", "body"], strength=20.0, source=source(case)))
        for step in range(first, first + steps):
            backward(run, case, opt, reg, step)
            average_ignored(run, model)
            if case.clip == "torch":
                nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            opt.step()
            opt.zero_grad()


def backward(run: Any, case: Case, opt: Any, reg: Any, step: int) -> None:
    x, y = (part[share_of_rank() if case.wrapper != "none" else slice(None)] for part in batch(step, case))
    for i, (some, labels) in enumerate(zip(x.chunk(case.parts), y.chunk(case.parts), strict=True)):
        with micro_batch(run, case, i == case.parts - 1):
            loss = cross_entropy(run(some), labels) / case.parts
            if reg is not None and case.penalty == "apart":
                opt.take_penalty(reg(some) / case.parts)
            elif reg is not None:
                loss = loss + reg(some) / case.parts
            loss.backward()


def average_ignored(run: Any, model: Any) -> None:
    """What FSDP2 ignores is the user's to average."""
    if isinstance(run, FSDPModule):
        for p in model.parameters():
            if not isinstance(p, DTensor) and p.grad is not None:
                distributed.all_reduce(p.grad)
                p.grad /= world_size()


def trained(case: Case, folder: Path | None = None) -> dict[str, Any]:
    model = network(case)
    run = wrapped(model, case.wrapper)
    opt = optimizer_of(model, case, folder)
    train(run, model, case, opt)
    return {"weights": weights_of(model), "gram": opt.gram.clone(), "penalty_gram": opt.penalty_gram.clone()}


def alone(case: Case) -> Case:
    """The same in one process, with the whole batch."""
    return Case(**(asdict(case) | {"wrapper": "none"}))
