"""A Llama trains on, from Python's code to Python's manual: what L2-SP and DTNH keep of the code, and at what price.

The network is built from a configuration, and its text is what every Python has: the source is the code of the standard
library, the target the manual (`pydoc_data.topics`). Nothing is downloaded. Perplexity per byte is measured on files
and sections that are never trained on. The rival is plain AdamW at lower rates and after fewer steps.

    python examples/language_model.py

Writes the pre-trained network, results.json and tradeoff.png to --out; the same command goes on where it was stopped.
"""

import argparse
import hashlib
import json
import math
import os
import sysconfig
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, cycle, product
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import pytl
from pytl.files import replacing
from pytl.pictures import COLOURS, drawing

TITLES = {"adamw": "AdamW", "l2sp": "L2-SP", "dtnh": "L2-SP + DTNH"}
SIZES = {  # vocabulary, width, layers, heads, width within a layer
    "100k": (512, 64, 1, 2, 172),
    "1m": (1024, 128, 4, 2, 344),
    "10m": (4096, 384, 4, 6, 1024),
    "100m": (8192, 768, 12, 12, 2048),
    "1b": (16384, 2048, 18, 16, 5504),
    "7b": (32000, 4096, 32, 32, 11008),
}
MEASURED = 32  # windows of held-out text


class Texts(NamedTuple):
    """Tokens to train on and tokens held out, and how many bytes each token of the vocabulary stands for."""

    source: Tensor
    source_held_out: Tensor
    target: Tensor
    target_held_out: Tensor
    token_bytes: Tensor


class Run(NamedTuple):
    """One training on the target."""

    method: str
    lr: float
    strength: float
    steps: int
    seed: int
    moments: str

    def __str__(self) -> str:
        pull = f" {self.strength:g}" if self.strength else ""
        moments = "" if self.moments == "float32" else f", {self.moments}"
        return f"{TITLES[self.method]}{pull}, lr {self.lr:g}{moments}"


Rows = dict[tuple[Run, int], list[tuple[float, ...]]]


def texts(vocabulary: int) -> Texts:
    """Pairs of bytes are joined to tokens as they are frequent in the source that is trained on."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    source = split([file.read_text("utf-8", "replace") for file in files])
    target = split([topics[name] for name in sorted(topics)])
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(source[0], vocab_size=vocabulary, show_progress=False)
    encoded = [tokenizer.encode_batch([text + "\n\n" for text in part]) for part in (*source, *target)]
    tokens = [[token for paragraph in part for token in paragraph.ids] for part in encoded]
    token_bytes = [len(tokenizer.id_to_token(token)) for token in range(tokenizer.get_vocab_size())]
    return Texts(*(torch.tensor(part, dtype=torch.int32) for part in (*tokens, token_bytes)))


def split(parts: list[str]) -> tuple[list[str], list[str]]:
    """Paragraphs to train on, and those of one part in ten, held out.

    What other parts repeat of those is not trained on: sections of the manual contain each other.
    """
    whole = [part.split("\n\n") for part in parts]
    held_out = [paragraph for part in whole[5::10] for paragraph in part]
    seen = {" ".join(paragraph.split()) for paragraph in held_out}
    others = [paragraph for k, part in enumerate(whole) if k % 10 != 5 for paragraph in part]
    return [paragraph for paragraph in others if " ".join(paragraph.split()) not in seen], held_out


def network(options: argparse.Namespace) -> PreTrainedModel:
    vocabulary, width, layers, heads, inner = SIZES[options.size]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=options.length,
        use_cache=False,
    )
    torch.manual_seed(0)
    with torch.device(options.device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, options.dtype))
    if options.checkpointing:
        model.gradient_checkpointing_enable()
    return model.train()


def windows(text: Tensor, places: Tensor, length: int) -> Tensor:
    return torch.stack([text[place : place + length] for place in places.tolist()]).long()


@torch.no_grad()
def perplexity(model: PreTrainedModel, text: Tensor, token_bytes: Tensor, options: argparse.Namespace) -> float:
    """Per byte, on windows spread evenly over the text; a window's first token is given."""
    found = windows(text, torch.linspace(0, len(text) - options.length, MEASURED).long(), options.length)
    parts = found.to(model.device).split(options.batch)
    nats = sum(float(model(input_ids=x, labels=x).loss) * x[:, 1:].numel() for x in parts)
    return math.exp(nats / int(token_bytes[found[:, 1:]].sum()))


def perplexities(model: PreTrainedModel, text: Texts, options: argparse.Namespace) -> dict[str, float]:
    held_out = {"target": text.target_held_out, "source": text.source_held_out}
    return {name: perplexity(model, part, text.token_bytes, options) for name, part in held_out.items()}


def steps(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    text: Tensor,
    options: argparse.Namespace,
    end: int,
    seed: int,
    rate: Callable[[int], float],
) -> Iterator[int]:
    """Trains on windows that the seed draws; gives the number of steps after each."""
    generator = torch.Generator().manual_seed(seed)
    schedule = LambdaLR(optimizer, rate)
    for step in range(1, end + 1):
        places = torch.randint(len(text) - options.length, (options.batch,), generator=generator)
        x = windows(text, places, options.length).to(model.device)
        model(input_ids=x, labels=x).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        yield step


def pretrain(model: PreTrainedModel, text: Tensor, options: argparse.Namespace) -> None:
    optimizer = pytl.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1, max_grad_norm=1.0)
    end, began = options.pretrain_steps, time.monotonic()

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / 50) * (1 - 0.9 * step / end)

    for step in steps(model, optimizer, text, options, end, 0, rate):
        if step % 100 == 0 or step == end:
            print(f"pre-training: {step} of {end} steps, {time.monotonic() - began:.0f} s", flush=True)


def prepared(model: PreTrainedModel, text: Texts, options: argparse.Namespace) -> dict[str, Any]:
    """The results in --out so far, and the pre-trained network; without one there, both begin anew."""
    weights, results = options.out / "source.safetensors", options.out / "results.json"
    wanted = settings(options, text)
    if weights.exists() and not options.fresh:
        with safe_open(weights, framework="pt") as file:
            refuse_others(weights, json.loads((file.metadata() or {}).get("settings", "{}")), wanted)
        print(f"pre-trained before: {weights}")
        model.load_state_dict(load_file(weights))
        if results.exists():
            return json.loads(results.read_text())
    else:
        results.unlink(missing_ok=True)
        pretrain(model, text.source, options)
        partial = weights.with_suffix(".partial")
        save_file(model.state_dict(), partial, {"format": "pt", "settings": json.dumps(wanted)})
        os.replace(partial, weights)
    return {"settings": wanted, "before": perplexities(model, text, options), "runs": {}}


def settings(options: argparse.Namespace, text: Texts) -> dict[str, Any]:
    """What all runs in a folder share; another Python's library has other tokens."""
    names = ("size", "dtype", "length", "batch", "pretrain_steps")
    tokens = hashlib.sha256(b"".join(part.numpy().tobytes() for part in text)).hexdigest()[:16]
    return {name: getattr(options, name) for name in names} | {"tokens": tokens}


def refuse_others(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    others = [f"{name} {found.get(name)}, not {value}" for name, value in wanted.items() if found.get(name) != value]
    if others:
        raise SystemExit(f"{path} was made with {'; '.join(others)}: give another --out, or --fresh to begin anew")


def train_on(model: PreTrainedModel, run: Run, text: Texts, options: argparse.Namespace) -> list[dict[str, float]]:
    """From the pre-trained network on the target; plain AdamW is measured on the way, too."""
    weights = options.out / "source.safetensors"
    model.load_state_dict(load_file(weights))
    groups = pytl.param_groups(model, head=(), sp_decay=run.strength, verbose=False)
    direction = "dtnh" if run.method == "dtnh" else "sum"
    start = weights if run.strength else None
    optimizer = pytl.AdamW(groups, lr=run.lr, direction=direction, start=start, moments=run.moments)
    stops = {run.steps} if run.strength else {run.steps // 4, run.steps // 2, run.steps}
    trained = steps(model, optimizer, text.target, options, run.steps, run.seed, lambda step: min(1.0, (step + 1) / 10))
    return [{"step": step, **perplexities(model, text, options)} for step in trained if step in stops]


def runs(options: argparse.Namespace) -> list[Run]:
    """Seed by seed: plain AdamW at every rate, the others at the first."""
    pulled = [method for method in options.methods if method != "adamw"]
    ways = [("adamw", lr, 0.0) for lr in options.lr if "adamw" in options.methods]
    ways += [(method, options.lr[0], strength) for method, strength in product(pulled, options.strengths)]
    return [Run(*way, options.steps, seed, options.moments) for seed in range(options.seeds) for way in ways]


def least_rise(plain: list[tuple[float, float]], target: float) -> float:
    """What plain AdamW's perplexity on the source rises by at the least, where that on the target is `target`.

    Straight lines between its points are taken to be reachable; nan where no point is as good on the target.
    """
    spans = [(a, b) for a, b in combinations(sorted(set(plain)), 2) if a[0] <= target <= b[0] and a[0] < b[0]]
    return min((a[1] + (b[1] - a[1]) * (target - a[0]) / (b[0] - a[0]) for a, b in spans), default=math.nan)


def rows(found: dict[str, Any], wanted: list[Run]) -> Rows:
    """By way and step, columns over the seeds: perplexity on the target, rise on the source, how much more plain's is.

    Plain AdamW stands first in `wanted`.
    """
    before = found["before"]
    plain = defaultdict(lambda: [(before["target"], 0.0)])
    measured = defaultdict(list)
    for run in wanted:
        for point in found["runs"][key(run)]["points"]:
            target, rise = point["target"], point["source"] - before["source"]
            if run.method == "adamw":
                plain[run.seed].append((target, rise))
            less = least_rise(plain[run.seed], target) - rise
            measured[run._replace(seed=0), point["step"]].append((target, rise, less))
    return {way: list(zip(*values, strict=True)) for way, values in measured.items()}


def key(run: Run) -> str:
    return f"{run}, {run.steps} steps, seed {run.seed}"


def words(values: Sequence[float], form: str = ".3f") -> str:
    if any(map(math.isnan, values)):
        return "not reached by plain"
    low, middle, high = (format(value, form) for value in (min(values), median(values), max(values)))
    return f"{middle} ({low} to {high})"


def table(found: dict[str, Any], wanted: list[Run]) -> str:
    lines = [
        "Perplexity per byte on held-out text; medians over the seeds (least to greatest). Before: "
        f"target {found['before']['target']:.3f}, source {found['before']['source']:.3f}.",
        f"{'':30}steps  {'target':27}{'rise on the source':27}less than plain at that target",
    ]
    for (run, step), (target, rise, less) in rows(found, wanted).items():
        last = "" if run.method == "adamw" else words(less, "+.3f")
        lines.append(f"{run!s:30}{step:5}  {words(target):27}{words(rise, '+.3f'):27}{last}".rstrip())
    return "\n".join(lines)


def picture(found: dict[str, Any], wanted: list[Run], path: Path) -> None:
    """Grey: plain AdamW, a line for each rate. The thin lines reach from the least to the greatest seed."""
    lines = defaultdict(list)
    for (run, _), columns in rows(found, wanted).items():
        by = "steps" if run.method == "adamw" else "strength"
        lines[run.method, f"{TITLES[run.method]}, lr {run.lr:g}, by {by}"].append((run, columns))
    with drawing(path, height=4.6) as figure:
        axes = figure.subplots()
        axes.plot(found["before"]["target"], 0, "k*", markersize=11, label="pre-trained")
        for ((method, label), points), marker in zip(lines.items(), cycle("ov^sDPX"), strict=False):
            colour = COLOURS[list(TITLES).index(method)]
            middle = [(median(target), median(rise)) for _, (target, rise, _) in points]
            axes.plot(*zip(*middle, strict=True), color=colour, marker=marker, markersize=5, alpha=0.8, label=label)
            for (x, y), (run, (target, rise, _)) in zip(middle, points, strict=True):
                axes.plot([min(target), max(target)], [y, y], color=colour, linewidth=1)
                axes.plot([x, x], [min(rise), max(rise)], color=colour, linewidth=1)
                if method == "l2sp":
                    axes.annotate(f"{run.strength:g}", (x, y), (-5, -14), textcoords="offset points", color=colour)
        axes.set(xlabel="perplexity per byte on the target", ylabel="rise of that on the source")
        axes.set_title("Held-out text: left and low is better")
        axes.legend(fontsize=9)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    options = parsed(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    began, wanted = time.monotonic(), runs(options)
    text = texts(SIZES[options.size][0])
    shortest = min(len(part) for part in text[:4])
    if options.length >= shortest:
        raise SystemExit(f"--length must be < {shortest}, the tokens of the shortest text; got {options.length}")
    model = network(options)
    size = sum(weight.numel() for weight in model.parameters())
    print(f"{options.size}: {size:,} parameters, {options.dtype}, {options.device}")
    found = prepared(model, text, options)
    for number, run in enumerate(wanted, 1):
        if key(run) not in found["runs"]:
            points = train_on(model, run, text, options)
            found["runs"][key(run)] = {**run._asdict(), "points": points}
            with replacing(options.out / "results.json") as file:
                file.write(json.dumps(found, indent=1).encode())
        end = found["runs"][key(run)]["points"][-1]
        print(f"{number}/{len(wanted)} {key(run)}: target {end['target']:.3f}, source {end['source']:.3f}", flush=True)
    print(table(found, wanted))
    picture(found, wanted, options.out / "tradeoff.png")
    print(f"{time.monotonic() - began:.0f} s; results.json, tradeoff.png and source.safetensors are in {options.out}")
    return found


def parameters(vocabulary: int, width: int, layers: int, _: int, inner: int) -> int:
    return 2 * vocabulary * width + layers * (4 * width**2 + 3 * width * inner + 2 * width) + width


def over(bound: int, kind: type = int) -> Callable[[str], float]:
    """What argparse reads a number with that must be larger."""

    def number(text: str) -> float:
        if not kind(text) > bound:
            raise argparse.ArgumentTypeError(f"must be > {bound}; got {text}")
        return kind(text)

    return number


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    sizes = "\n".join(f"  {name:5} {parameters(*shape):14,} parameters" for name, shape in SIZES.items())
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"sizes, from 1b on with --dtype bfloat16 --checkpointing:\n{sizes}",
        formatter_class=raw,
    )
    add = parser.add_argument
    add("--size", choices=SIZES, default="10m", help="of the network, see below (default: %(default)s)")
    add("--steps", type=over(0), default=40, help="on the target (default: %(default)s)")
    add("--pretrain-steps", type=over(0), default=800, help="on the source (default: %(default)s)")
    add("--batch", type=over(0), default=4, help="windows in a step (default: %(default)s)")
    add("--length", type=over(1), default=128, help="tokens in a window (default: %(default)s)")
    rates = "AdamW has each, pulled methods the first (default: %(default)s)"
    add("--lr", type=over(0, float), nargs="+", default=[1e-3, 5e-4, 2.5e-4], help=rates)
    add("--methods", nargs="+", choices=TITLES, default=list(TITLES), help="(default: all)")
    add(
        "--strengths",
        type=over(0, float),
        nargs="+",
        default=[10, 30, 100],
        help="of L2-SP: sp_decay (default: %(default)s)",
    )
    add("--seeds", type=over(0), default=2, help="orders of the target's text (default: %(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default here: %(default)s)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights (default: %(default)s)")
    kept = "what AdamW's moments are kept in (default: %(default)s)"
    add("--moments", choices=("float32", "bfloat16", "8bit"), default="float32", help=kept)
    add("--checkpointing", action="store_true", help="compute activations twice instead of keeping them")
    add("--out", type=Path, default=Path("runs/language-model"), help="folder (default: %(default)s)")
    add("--fresh", action="store_true", help="begin anew, whatever is in --out")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("\nstopped: the same command goes on from the last finished run") from None
