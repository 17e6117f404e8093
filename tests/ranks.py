"""What several ranks run in the tests of distributed training: started once, over gloo, results left in a folder."""

from __future__ import annotations

import contextlib
import copy
import os
import socket
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch import multiprocessing as mp
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import pytl
from pytl import metrics

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


# What else two ranks do; each returns what the tests compare:

SHARDED = Case("fsdp2", "dtnh", "global", method="AdamW", clip="own")


def ready(case: Case, seed: int = 0, steps: int = 0) -> tuple[Any, Any]:
    model = network(case, seed)
    run = wrapped(model, case.wrapper)
    opt = optimizer_of(model, case)
    train(run, model, case, opt, steps=steps)
    return model, opt


def states(folder: Path) -> dict[str, Any]:
    """Which state tensors are not laid out as their parameter, and the numbers beside them."""
    model, opt = ready(SHARDED, steps=1)
    wrong, numbers = [], {}
    for name, p in model.named_parameters():
        for key, value in opt.state.get(p, {}).items():
            if type(value) is Tensor and value.dim() == 0:
                numbers[f"{name} {key}"] = value
            elif not is_laid_out_as(value, p):
                wrong.append(f"{name} {key}")
    stateless = [name for name, p in model.named_parameters() if not opt.state.get(p)]
    return {"wrong": wrong, "numbers": numbers, "stateless": stateless}


def is_laid_out_as(value: Any, p: Any) -> bool:
    return (
        isinstance(value, DTensor)
        and (value.placements, value.device_mesh, value.shape) == (p.placements, p.device_mesh, p.shape)
        and value.to_local().shape == p.to_local().shape
    )


class Collectives(TorchDispatchMode):
    """Counts them, functional or not."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # DTensor makes of it what it runs on local tensors
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in func.__name__:
            self.seen[func.__name__.split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


COUNTED = {
    "ddp": Case("ddp", "dtnh", "global", clip="own"),
    "ddp with a penalty": Case("ddp", "dtnh", "global", penalty="apart", clip="own"),
    "fsdp2 sum": Case("fsdp2", "sum", "tensor"),
    "fsdp2 tensor": Case("fsdp2", "dtnh", "tensor"),
    "fsdp2 global": Case("fsdp2", "grod", "global", method="AdamW", clip="own"),
    "fsdp2 own rule": Case("fsdp2", "own rule", "global", clip="own"),
    "fsdp2 with a penalty": Case("fsdp2", "dtnh", "global", penalty="apart", clip="own"),
    "hsdp": Case("hsdp-1-2", "dtnh", "global", clip="own"),
    "hsdp of whole replicas": Case("hsdp-2-1", "dtnh", "global", clip="own"),
}


def collectives(folder: Path) -> dict[str, list[dict[str, int]]]:
    """Of the steps after the first."""
    found: dict[str, list[dict[str, int]]] = {}
    for name, case in COUNTED.items():
        model = network(case)
        run = wrapped(model, case.wrapper)
        opt = optimizer_of(model, case)
        take = opt.step
        counts: list[dict[str, int]] = []

        def counted(take: Any = take, counts: Any = counts) -> None:
            with Collectives() as seen:
                take()
            counts.append(dict(seen.seen))

        with mock.patch.object(opt, "step", counted):
            train(run, model, case, opt)
        found[name] = counts[1:]
    return found


class Shadow:
    """An optimizer over whole copies of the weights, which gets the whole gradients: what each step must equal."""

    def __init__(self, model: Any, make: Callable[[Any], Any]) -> None:
        self.model, self.opt = model, make(model.named_parameters())
        self.copies = {name: nn.Parameter(whole(p)) for name, p in model.named_parameters()}
        self.whole = make(self.copies.items())

    def step(self) -> None:
        for name, p in self.model.named_parameters():
            self.copies[name].grad = None if p.grad is None else whole(p.grad)
        self.opt.step()
        self.whole.step()

    def outcome(self) -> dict[str, Any]:
        report, expected = self.opt.report().to_dict(), self.whole.report().to_dict()
        return {
            "weights": weights_of(self.model),
            "expected": [p.detach() for p in self.copies.values()],
            "gram": self.opt.gram.clone(),
            "expected gram": self.whole.gram.clone(),
            "report": report,
            "expected report": expected,
        }


PULLED: dict[str, Any] = {"sp_decay": 0.5, "weight_decay": 0.1}
ADAMW = partial(pytl.AdamW, lr=0.05, direction="dtnh", **PULLED)
BOUND = partial(pytl.SGD, lr=0.1, momentum=0.9, direction="grod", granularity="global", max_grad_norm=0.1, **PULLED)


def shadowed(
    make: Callable[[Any], Any],
    weights: torch.dtype = torch.float32,
    spoil: Callable[[Any, int], None] = lambda model, step: None,
    **options: Any,
) -> dict[str, Any]:
    case = Case("fsdp2", dtype="float32")
    model = sharded(network(case).to(weights), mesh_of("fsdp2"), **options)
    shadow = Shadow(model, make)
    for step in range(FIRST_STEPS):
        x, y = (part[share_of_rank()] for part in batch(step, case))
        cross_entropy(model(x.to(weights)).float(), y).backward()
        spoil(model, step)
        shadow.step()
        shadow.opt.zero_grad()
    return shadow.outcome()


def mixed_precision(folder: Path) -> dict[str, Any]:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return shadowed(ADAMW, mp_policy=policy)


def sixteen_bits(folder: Path) -> dict[str, Any]:
    return shadowed(ADAMW, weights=torch.bfloat16)


def without_the_core(folder: Path) -> dict[str, Any]:
    return shadowed(partial(BOUND, foreach=True))


def two_paths(folder: Path) -> dict[str, Any]:
    """Half of the tensors on the core, half in PyTorch."""

    def make(named: Any) -> Any:
        pairs = [*named]
        return BOUND(params=[{"params": pairs[::2], "foreach": True}, {"params": pairs[1::2], "sp_decay": 1.0}])

    return shadowed(make)


def infinite_on_one_rank(folder: Path) -> dict[str, Any]:
    """One element of one shard; the other rank must treat its part as that of a tensor that is not finite."""

    def spoil(model: Any, step: int) -> None:
        if step == FIRST_STEPS - 1 and this_rank() == 1:
            model.stem.weight.grad.to_local()[0, 0] = float("inf")

    return shadowed(partial(BOUND, granularity="tensor"), spoil=spoil)


def later_gradient(folder: Path) -> dict[str, Any]:
    """A parameter takes part from the second step on, and not in the third."""

    def spoil(model: Any, step: int) -> None:
        if step == 1:
            for p in model.unused.parameters():
                p.grad = torch.ones_like(p)

    return shadowed(BOUND, spoil=spoil)


def nothing_on_one_rank(folder: Path) -> dict[str, Any]:
    """One row: the other rank holds nothing of any parameter."""
    torch.manual_seed(0)
    model = nn.Linear(6, 1, bias=False)
    fully_shard(model, mesh=mesh_of("fsdp2"))
    return after_steps(model, 6)


def split_by_columns(folder: Path) -> dict[str, Any]:
    """Shards along dim 1, which are not contiguous in the whole."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6, bias=False), nn.Tanh(), nn.Linear(6, 4, bias=False))
    fully_shard(model, mesh=mesh_of("fsdp2"), shard_placement_fn=lambda p: Shard(1))
    return after_steps(model, 8)


def tensor_parallel(folder: Path) -> dict[str, Any]:
    """Shards along both dims, replicated DTensors and plain tensors in one optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4), nn.LayerNorm(4))
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallelize_module(model, init_device_mesh("cpu", (2,)), plan)
    return after_steps(model, 8, same_data=True)


def two_dimensions(folder: Path) -> dict[str, Any]:
    """FSDP2 over one dimension of the mesh, tensor parallel over the other: shards of shards."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["data"])
    return after_steps(model, 8, same_data=True)


def after_steps(model: Any, features: int, same_data: bool = False) -> dict[str, Any]:
    shadow = Shadow(model, BOUND)
    for step in range(FIRST_STEPS):
        torch.manual_seed(step + (0 if same_data else 100 * this_rank()))
        model(torch.randn(4, features)).pow(2).mean().backward()
        shadow.step()
        shadow.opt.zero_grad()
    return shadow.outcome()


def start_dtypes(folder: Path) -> dict[str, Any]:
    """bfloat16 holds what one rank has of the weight, not what the other has; and holds all of the bias."""
    model = nn.Linear(3, 4)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.weight[-1] = 1 / 3
        model.bias.fill_(0.5)
    expected = weights_of(model)
    fully_shard(model, mesh=mesh_of("fsdp2"))
    opt = pytl.SGD(model.parameters(), lr=0.1, sp_decay=0.1)
    model(torch.ones(2, 3)).sum().backward()
    opt.step()
    starts = [opt.state[p]["start"] for p in model.parameters()]
    return {
        "dtypes": [str(start.dtype) for start in starts],
        "local dtypes": [str(start.to_local().dtype) for start in starts],
        "starts": [whole(start).float() for start in starts],
        "expected": expected,
    }


def overflow_on_one_rank(folder: Path) -> dict[str, Any]:
    """The shard of the last rank has an infinite gradient; the others know only what they are told."""
    case = Case("fsdp2", dtype="float32", method="AdamW")
    model, opt = ready(case, steps=1)
    before, steps = weights_of(model), step_counts(opt)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x, y = (part[share_of_rank()] for part in batch(1, case))
    scaler.scale(cross_entropy(model(x), y)).backward()
    if this_rank() == world_size() - 1:
        model.stem.weight.grad.to_local()[0, 0] = float("inf")
    scaler.step(opt)
    scaler.update()
    return {
        "before": before,
        "after": weights_of(model),
        "scale": scaler.get_scale(),
        "steps": [steps, step_counts(opt)],
    }


def scaled_penalties(folder: Path) -> dict[str, Any]:
    """Powers of two change no bit; an overflow of the penalty, which one rank sees, skips the step on both."""
    case = Case("fsdp2", dtype="float32", penalty="apart")
    found: dict[str, Any] = {}
    for name, scale, size in (("plain", None, 1.0), ("scaled", 1024.0, 1.0), ("overflown", 1024.0, 1e36)):
        model, opt = ready(case)
        before = weights_of(model)
        seen: list[Tensor] = []
        model.head.register_forward_hook(lambda layer, args, out, seen=seen: seen.append(layer.weight[-1, 0]))
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for step in range(2 if size == 1 else 1):
            x, y = (part[share_of_rank()] for part in batch(step, case))
            out = model(x)
            opt.take_penalty(out.pow(2).mean() + size * seen[-1], scaler)
            scaler.scale(cross_entropy(out, y)).backward()
            scaler.step(opt)
            scaler.update()
            opt.zero_grad()
        found[name] = {"before": before, "after": weights_of(model), "scale": scaler.get_scale()}
    return found


def scaled_penalty_where_nothing_is(folder: Path) -> dict[str, Any]:
    """One row: the other rank has no element in which an overflow could be told."""
    torch.manual_seed(0)
    model: Any = nn.Linear(6, 1, bias=False)
    fully_shard(model, mesh=mesh_of("fsdp2"))
    return scaled_and_plain(model, lambda: (model(torch.ones(2, 6)),) * 2)


class Pair(nn.Module):
    """``first`` is reached by the penalty alone. The smallest shard is of it on rank 1, of another on rank 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, 3, bias=False), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        second = self.second(x)
        return second, torch.cat([self.first(x[:, :1]), second], dim=1)


def scaled_penalty_beside_the_task(folder: Path) -> dict[str, Any]:
    """A parameter without a gradient of the task is not stepped on, with a scaler as without."""
    torch.manual_seed(0)
    model: Any = fully_shard(Pair(), mesh=mesh_of("fsdp2"))
    return scaled_and_plain(model, lambda: model(torch.ones(2, 4)))


def scaled_and_plain(model: Any, outputs: Callable[[], tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """The weights after a step each, with a scale of a power of two and without; first those before."""
    found = {"before": weights_of(model)}
    state = {name: p.to_local().detach().clone() for name, p in model.named_parameters()}
    for name, enabled in (("plain", False), ("scaled", True)):
        for key, p in model.named_parameters():
            p.detach().to_local().copy_(state[key])
        opt = pytl.SGD(model.parameters(), lr=0.1, sp_decay=0.1, direction="dtnh")
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=enabled)
        of_task, of_penalty = outputs()
        opt.take_penalty(of_penalty.pow(2).mean(), scaler)
        scaler.scale(of_task.sum()).backward()
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
        found[name] = weights_of(model)
    return found


def replaced_parameters(folder: Path) -> list[Tensor]:
    """As accelerate does: the optimizer is made before the model is sharded, and is given the new parameters."""
    case = Case("fsdp2", start="")
    model = network(case)
    opt = optimizer_of(model, case)
    sharded(model, mesh_of("fsdp2"))
    opt.param_groups[0]["params"] = [*model.parameters()]
    train(model, model, case, opt)
    return weights_of(model)


def in_backward(folder: Path) -> dict[str, Any]:
    """An optimizer for each parameter, which steps as soon as its gradient is there."""
    case = Case("fsdp2", "dtnh", "tensor")
    found = {}
    for name in ("after", "in"):
        model = sharded(network(case), mesh_of("fsdp2"))
        model.unused.requires_grad_(False)
        trainable = [p for p in model.parameters() if p.requires_grad]
        options = {"lr": 0.1, "direction": "dtnh", **PULLED}
        opts = {p: pytl.SGD([p], **options) for p in trainable}
        if name == "in":
            for p in trainable:
                p.register_post_accumulate_grad_hook(lambda p, opts=opts: (opts[p].step(), opts[p].zero_grad())[0])
        for step in range(FIRST_STEPS):
            x, y = (part[share_of_rank()] for part in batch(step, case))
            cross_entropy(model(x), y).backward()
            for one in opts.values():
                one.step()
                one.zero_grad()
        found[name] = weights_of(model)
    return found


def step_counts(opt: Any) -> list[float]:
    return [float(state["step"]) for state in opt.state.values()]


def unreduced(folder: Path) -> list[Tensor]:
    """As a case of the matrix, but no rank hears of the others' Gram numbers: what the tests must notice."""
    case = Case("fsdp2", "grod", "global")
    model = network(case)
    run = wrapped(model, case.wrapper)
    opt = optimizer_of(model, case)
    take = opt.step

    def alone() -> None:
        with mock.patch.object(distributed, "all_reduce", return_value=None):
            take()

    with mock.patch.object(opt, "step", alone):
        train(run, model, case, opt)
    return weights_of(model)


def refusals(folder: Path) -> dict[str, str]:
    """What is said to options, starts and penalties that cannot be."""
    model, opt = ready(SHARDED)
    named = [*model.named_parameters()]
    start = {name: torch.zeros(p.shape) for name, p in named}
    attempts: dict[str, Callable[[], Any]] = {
        "granularity": lambda: pytl.SGD(named, granularity="layer"),
        "direction": lambda: pytl.SGD(named, direction="up"),
        "missing": lambda: pytl.SGD(named, sp_decay=0.1, start={k: v for k, v in start.items() if k != "stem.weight"}),
        "shape": lambda: pytl.SGD(named, sp_decay=0.1, start=start | {"stem.weight": torch.zeros(3, 7)}),
        "no parameter": lambda: opt.take_penalty(torch.ones((), requires_grad=True) * 2),
        "no scalar": lambda: opt.take_penalty(model.stem.weight.to_local().sum(0)),
    }
    return {name: refusal(attempt) for name, attempt in attempts.items()}


def refusal(attempt: Callable[[], Any]) -> str:
    try:
        attempt()
    except (Exception, checkpoint.CheckpointException) as error:  # which is no Exception
        return f"{type(error).__name__}: {error}"
    return ""


def penalty_leaves_the_task(folder: Path) -> dict[str, Any]:
    """Gradients of the task, before and after a penalty is taken between two micro-batches."""
    case = Case("fsdp2", penalty="apart")
    model, opt = ready(case)
    x, y = (part[share_of_rank()] for part in batch(0, case))
    cross_entropy(model(x), y).backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    addresses = [p.grad.to_local().data_ptr() for p in model.parameters() if p.grad is not None]
    opt.take_penalty(model(x).pow(2).mean())
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return {
        "before": [whole(g) for g in before],
        "after": [whole(g) for g in grads],
        "in place": addresses == [g.to_local().data_ptr() for g in grads],
    }


# Saving and loading:


def savable(case: Case, seed: int = 0) -> tuple[Any, Any, Any]:
    """torch wants a state of each parameter that asks for gradients."""
    model = network(case, seed)
    model.unused.requires_grad_(False)
    run = wrapped(model, case.wrapper)
    return run, model, optimizer_of(model, case)


CHECKPOINTED = {
    "sgd": Case("fsdp2", "grod", "global", start="", clip="own"),
    "adamw": Case("fsdp2", "dtnh", "tensor", method="AdamW", start=""),
    "ddp": Case("ddp", "dtnh", "tensor", method="AdamW", start=""),
}


def save(path: Path, model: Any, opt: Any) -> None:
    of_model, of_opt = get_state_dict(model, opt)
    checkpoint.save({"model": of_model, "optimizer": of_opt}, checkpoint_id=path)


def load(path: Path, model: Any, opt: Any) -> None:
    of_model, of_opt = get_state_dict(model, opt)
    state: dict[str, Any] = {"model": of_model, "optimizer": of_opt}
    checkpoint.load(state, checkpoint_id=path)
    set_state_dict(model, opt, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def saved_and_continued(path: Path, case: Case) -> dict[str, Any]:
    """Three steps, a checkpoint, three more."""
    run, model, opt = savable(case)
    train(run, model, case, opt)
    save(path, model, opt)
    return continued(run, model, case, opt)


def loaded_and_continued(path: Path, case: Case, seed: int = 3) -> dict[str, Any]:
    """Into a network of other weights, three steps more."""
    run, model, opt = savable(case, seed)
    if seed < 0:
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
    load(path, model, opt)
    return continued(run, model, case, opt)


def continued(run: Any, model: Any, case: Case, opt: Any) -> dict[str, Any]:
    starts = [whole(state["start"]).double() for state in opt.state.values() if "start" in state]
    train(run, model, case, opt, first=FIRST_STEPS)
    return {"weights": weights_of(model), "starts": starts, "steps": step_counts(opt)}


def save_on_two(folder: Path, name: str) -> dict[str, Any]:
    return saved_and_continued(folder / f"{name}-of-two", CHECKPOINTED[name])


def load_on_two(folder: Path, name: str) -> dict[str, Any]:
    return loaded_and_continued(folder / f"{name}-of-two", CHECKPOINTED[name])


def load_on_two_into_zeros(folder: Path, name: str) -> dict[str, Any]:
    return loaded_and_continued(folder / f"{name}-of-two", CHECKPOINTED[name], seed=-1)


def load_of_one(folder: Path, name: str) -> dict[str, Any]:
    return loaded_and_continued(folder / f"{name}-of-one", CHECKPOINTED[name])


def first_state(folder: Path) -> dict[str, Any]:
    """Before a load, torch takes a step of zero gradients at a rate of zero."""
    _, model, opt = savable(CHECKPOINTED["adamw"])
    before = weights_of(model)
    get_state_dict(model, opt)
    states = [value for state in opt.state.values() for value in state.values()]
    anchored = [p for p in model.parameters() if "start" in opt.state.get(p, {})]
    return {
        "before": before,
        "after": weights_of(model),
        "finite": all(bool(whole(value).isfinite().all()) for value in states),
        "starts": [whole(opt.state[p]["start"]).double() for p in anchored],
        "weights": [whole(p) for p in anchored],
    }


def full_state(folder: Path) -> dict[str, Any]:
    """The whole state on each rank, in an ordinary file; and back into another network."""
    case = CHECKPOINTED["adamw"]
    run, model, opt = savable(case)
    train(run, model, case, opt)
    options = StateDictOptions(full_state_dict=True)
    of_model, of_opt = get_state_dict(model, opt, options=options)
    path = folder / f"full-{this_rank()}.pt"
    torch.save({"model": of_model, "optimizer": of_opt}, path)
    expected = continued(run, model, case, opt)
    run, model, opt = savable(case, seed=3)
    state = torch.load(path, weights_only=True)
    set_state_dict(model, opt, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=options)
    return {"expected": expected, "found": continued(run, model, case, opt)}


def state_of_one_process(folder: Path) -> dict[str, Any]:
    """What one process saved by ``torch.save`` is loaded as it stands where parameters are sharded."""
    case = CHECKPOINTED["adamw"]
    run, model, opt = savable(case, seed=3)
    state = torch.load(folder / "plain-of-one.pt", weights_only=True)
    set_model_state_dict(model, state["model"], options=StateDictOptions(full_state_dict=True))
    opt.load_state_dict(state["optimizer"])
    return continued(run, model, case, opt)


def checkpoint_of_another(folder: Path) -> dict[str, Any]:
    _, model, opt = savable(CHECKPOINTED["adamw"])
    other = sharded(Network(width=9).double(), mesh_of("fsdp2"))
    other.unused.requires_grad_(False)
    theirs = optimizer_of(other, CHECKPOINTED["adamw"])
    save(folder / "another", other, theirs)
    before = weights_of(model)
    said = refusal(lambda: load(folder / "another", model, opt))
    return {"said": said, "before": before, "after": weights_of(model)}


def resumed(folder: Path, case: Case) -> dict[str, Any]:
    """Each rank keeps its own file, and reads nothing from it but tensors and numbers."""
    model, opt = ready(case, steps=FIRST_STEPS)
    file = folder / f"{case.method}-of-rank-{distributed.get_rank()}.pt"
    torch.save({"model": model.state_dict(), "optimizer": opt.state_dict()}, file)
    train(model, model, case, opt, first=FIRST_STEPS)
    again, opt_again = ready(case, seed=3)
    state = torch.load(file, weights_only=True)
    again.load_state_dict(state["model"])
    opt_again.load_state_dict(state["optimizer"])
    train(again, again, case, opt_again, first=FIRST_STEPS)
    return {"expected": weights_of(model), "found": weights_of(again)}


def resumed_sgd(folder: Path) -> dict[str, Any]:
    return resumed(folder, Case("fsdp2", "grod", "global", clip="own"))


def resumed_adamw(folder: Path) -> dict[str, Any]:
    return resumed(folder, Case("fsdp2", "dtnh", "tensor", method="AdamW", start=""))


def copied(folder: Path) -> dict[str, Any]:
    """A deep copy of the optimizer has parameters of its own, which step alike."""
    model, opt = ready(SHARDED, steps=2)
    twin = copy.deepcopy(opt)
    x, y = (part[share_of_rank()] for part in batch(2, SHARDED))
    cross_entropy(model(x), y).backward()
    ours, theirs = ([p for group in one.param_groups for p in group["params"]] for one in (opt, twin))
    for p, q in zip(ours, theirs, strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    before = [whole(q) for q in theirs]
    opt.step()
    untouched = all(torch.equal(whole(q), old) for q, old in zip(theirs, before, strict=True))
    twin.step()
    return {
        "expected": [whole(p) for p in ours],
        "found": [whole(q) for q in theirs],
        "untouched": untouched,
    }


def recorded(folder: Path) -> dict[str, Any]:
    """What the first rank's recorder has written, by pytl's optimizer and by torch's."""
    return {kind: recorded_by(kind, SHARDED, folder) for kind in ("pytl", "torch")}


def recorded_by(kind: str, case: Case, folder: Path) -> list[dict[str, Any]]:
    run, model, opt = savable(case)
    if kind == "torch":
        opt = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    first = this_rank() == 0
    path = folder / f"{kind}-{case.wrapper}.jsonl"
    recorder = pytl.Recorder(model, opt, path if first else None, every=1)
    for step in range(FIRST_STEPS):
        x, y = (part[share_of_rank()] for part in batch(step, case))
        cross_entropy(run(x), y).backward()
        opt.step()
        recorder.step()
        opt.zero_grad()
    recorder.close()
    return metrics.read(path) if first else []


JOBS: dict[str, Callable[[Path], Any]] = {
    function.__name__: function
    for function in (
        states,
        collectives,
        unreduced,
        mixed_precision,
        sixteen_bits,
        without_the_core,
        two_paths,
        infinite_on_one_rank,
        later_gradient,
        nothing_on_one_rank,
        split_by_columns,
        tensor_parallel,
        start_dtypes,
        overflow_on_one_rank,
        scaled_penalties,
        in_backward,
        replaced_parameters,
        penalty_leaves_the_task,
        first_state,
        full_state,
        state_of_one_process,
        checkpoint_of_another,
        resumed_sgd,
        resumed_adamw,
        copied,
        recorded,
        refusals,
    )
} | {
    f"{function.__name__} {name}": partial(function, name=name)
    for function in (save_on_two, load_on_two, load_on_two_into_zeros, load_of_one)
    for name in CHECKPOINTED
}
JOBS |= {function.__name__: function for function in (scaled_penalty_beside_the_task, scaled_penalty_where_nothing_is)}


# Starting them:

IMPORTED = ["safetensors.torch", "torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp"]
"""Once for all ranks, in a process that has no threads yet: imports take longer than the ranks' work."""


def start_ranks(world: int, folder: Path) -> None:
    """Returns when all have left their outcomes in the folder, or one has died: then those so far are there."""
    mp.get_context("forkserver").set_forkserver_preload(IMPORTED)
    with contextlib.suppress(mp.ProcessExitedException):
        mp.start_processes(rank_main, (world, free_port(), str(folder)), nprocs=world, start_method="forkserver")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def leave() -> NoReturn:
    """Ends a rank's process; at the interpreter's own end a thread of the process group may be left, and abort."""
    distributed.barrier()
    os._exit(0)


def rank_main(rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    limit = timedelta(seconds=60)
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world, timeout=limit)
    cases: Iterable[Case] = FOUR if world == 4 else ON_TWO
    todo: dict[str, Callable[[Path], Any]] = {str(case): partial(trained, case) for case in cases}
    todo |= JOBS if world == 2 else {"two_dimensions": two_dimensions}
    for name, one in todo.items():
        torch.save(outcome(one, Path(folder)), file_of(Path(folder), name, world, rank))
    leave()


def file_of(folder: Path, name: str, world: int, rank: int) -> Path:
    return folder / f"{name} {rank} of {world}.pt"


def outcome(run: Callable[[Path], Any], folder: Path) -> Any:
    """What it returns, or the text of what it raised: one that fails does not take the others with it."""
    try:
        return run(folder)
    except (Exception, checkpoint.CheckpointException):
        return {"raised": traceback.format_exc()}


def prepare(folder: Path) -> None:
    """What one process leaves for the ranks to load."""
    os.makedirs(folder, exist_ok=True)
    case = alone(CHECKPOINTED["adamw"])
    run, model, opt = savable(case)
    train(run, model, case, opt)
    torch.save({"model": model.state_dict(), "optimizer": opt.state_dict()}, folder / "plain-of-one.pt")
    for name, case in CHECKPOINTED.items():
        torch.save(saved_and_continued(folder / f"{name}-of-one", alone(case)), folder / f"{name}-of-one.pt")


def alone(case: Case) -> Case:
    """The same in one process, with the whole batch."""
    return Case(**(asdict(case) | {"wrapper": "none"}))
