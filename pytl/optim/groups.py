"""Parameter groups for transfer: which weights are new, how deep each lies, how much of the source each keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pytl.architecture import Head, unwrapped
from pytl.depth import HEAD, depth_blocks


@dataclass(frozen=True)
class Member:
    """A parameter's place in the network."""

    name: str
    param: Tensor
    depth: int
    role: str
    """"transferred", "not transferred" (a block above the fraction) or "new" (the head)."""


def param_groups(
    model: nn.Module,
    *,
    head: Head | None = None,
    transfer: float = 1.0,
    lr: float | None = None,
    head_lr: float | None = None,
    layer_decay: float = 1.0,
    sp_decay: float = 0.0,
    weight_decay: float = 0.0,
    head_weight_decay: float | None = None,
    decay_norm_and_bias: bool = False,
    verbose: bool = True,
) -> list[dict[str, Any]]:
    """Groups for ``pytl.SGD``, ``pytl.AdamW`` or any torch optimizer, with the parameters' names.

    Transferred weights are pulled to where they start (``sp_decay``), with ``weight_decay`` beside it if asked for; the
    new head and blocks above the transferred share are pulled to zero (``head_weight_decay``). Biases and norms (one
    dimension or none) are not pulled, as in the released code of L2-SP (arXiv:1802.01483).

    Args:
        model: any module; parameters that are frozen now (``requires_grad=False``) are left out, and names do not count
            wrappers (DDP, torch.compile).
        head: the new layers, by name, by module, or several. None finds them: what a Hugging Face checkpoint lacked (a
            deep copy of the network no longer says), a timm model's classifier, or a child named classifier, head,
            heads, fc, score or qa_outputs; PEFT's adapters are none of these. ``()``: none.
        transfer: share of the depth blocks that count as transferred, from the input on, in [0, 1].
        lr: rate of the topmost block; None: the optimizer's.
        head_lr: rate of the head; None: ``lr``.
        layer_decay: factor between the rates of neighbouring depth blocks, from the head down (timm's rule:
            ``lr * layer_decay ** (L - 1 - i)`` for depth i of L). Needs ``lr``.
        sp_decay, weight_decay: strengths for transferred weights.
        head_weight_decay: strength for the others; None: ``weight_decay``.
        decay_norm_and_bias: pull biases and norms as well.
        verbose: print what is anchored and what is new.

    Returns:
        Groups with "params" as (name, parameter) pairs, "lr" where given, "sp_decay", "weight_decay" and "role".

    Raises:
        ValueError: a head that is not in the model (with the nearest names), a share outside [0, 1], no parameters.
    """
    model = unwrapped(model)
    if not 0.0 <= transfer <= 1.0:
        raise ValueError(f"transfer must be in [0, 1]; got {transfer}")
    if not layer_decay > 0 or (layer_decay != 1.0 and lr is None):
        raise ValueError(f"layer_decay must be > 0 and needs lr; got layer_decay={layer_decay}, lr={lr}")
    members = list(_members(model, head, transfer))
    if not members:
        raise ValueError("model must have a parameter with requires_grad=True; got none")
    top = max(member.depth for member in members)
    grouped: list[tuple[str, Tensor, dict[str, Any]]] = []
    for member in members:
        rate = head_lr if member.role == "new" and head_lr is not None else lr
        options: dict[str, Any] = {} if rate is None else {"lr": rate * layer_decay ** (top - member.depth)}
        pulled = decay_norm_and_bias or member.param.dim() > 1
        kept = member.role == "transferred"
        others = weight_decay if head_weight_decay is None else head_weight_decay
        options["sp_decay"] = sp_decay if kept and pulled else 0.0
        options["weight_decay"] = (weight_decay if kept else others) if pulled else 0.0
        options["role"] = member.role
        grouped.append((member.name, member.param, options))
    groups = merged(grouped)
    if verbose:
        print(summary(groups))
    return groups


def merged(members: Iterable[tuple[str, Tensor, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Groups for an optimizer: (name, parameter, options), those of the same options together, in their order."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, p, options in members:
        groups.setdefault(tuple(options.items()), {"params": [], **options})["params"].append((name, p))
    return list(groups.values())


def summary(groups: Iterable[dict[str, Any]]) -> str:
    """One line a group: its role, size and options."""
    lines = ["role             tensors  parameters  pull"]
    for group in groups:
        size = sum(p.numel() for _, p in group["params"])
        strengths = {"to the start": group["sp_decay"], "to zero": group["weight_decay"]}
        pull = ", ".join(f"{strength:g} {where}" for where, strength in strengths.items() if strength) or "none"
        rate = f", lr {group['lr']:.3g}" if "lr" in group else ""
        lines.append(f"{group['role']:15}  {len(group['params']):7}  {size:10,}  {pull}{rate}")
    return "\n".join(lines)


def _members(model: nn.Module, head: Head | None, transfer: float) -> Iterator[Member]:
    named = dict(model.named_parameters())
    blocks = depth_blocks(model, head)
    body = sum(block.name != HEAD for block in blocks)
    for depth, block in enumerate(blocks):
        kept = "transferred" if depth < round(transfer * body) else "not transferred"
        for name in block.parameters:
            if named[name].requires_grad:
                yield Member(name, named[name], depth, "new" if block.name == HEAD else kept)
