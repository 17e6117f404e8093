"""The optimizers in other libraries' loops: Accelerate, Trainer, Lightning, PEFT and timm, against loops by hand."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm_stand_in
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import pytl
from pytl.integrations import hf

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 0.01
PULL = {"sp_decay": 0.5, "weight_decay": 0.1, "verbose": False}
SIZES = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
BERT = transformers.BertConfig(
    **SIZES,
    num_hidden_layers=2,
    max_position_embeddings=8,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
LLAMA = transformers.LlamaConfig(**SIZES, num_hidden_layers=2, max_position_embeddings=8, tie_word_embeddings=True)


def bert() -> Any:
    torch.manual_seed(1)
    return transformers.BertForSequenceClassification(BERT).train()


def llama() -> Any:
    torch.manual_seed(1)
    return transformers.LlamaForCausalLM(LLAMA).train()


def words(rows: int = 12) -> Tensor:
    return torch.randint(0, 20, (rows, 6), generator=torch.Generator().manual_seed(2))


def labels(rows: int = 12) -> Tensor:
    return torch.arange(rows) % 2


def mlp(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)


def vectors() -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    return TensorDataset(torch.randn(12, 4, generator=generator), labels())


def grouped(model: nn.Module, kind: Any = pytl.AdamW, direction: str = "dtnh", **options: Any) -> Any:
    return kind(pytl.param_groups(model, **PULL), lr=RATE, direction=direction, **options)


def assert_same_bits(one: nn.Module, other: nn.Module) -> None:
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name


def assert_same_state(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> None:
    states = [[opt.state[p] for group in opt.param_groups for p in group["params"]] for opt in (one, other)]
    for a, b in zip(*states, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype, name
            assert torch.equal(a[name], b[name]), name


# Accelerate


@pytest.fixture(autouse=True)
def _no_shared_state() -> Iterator[None]:
    """Accelerators of one process share whether it is time to step."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def steps(model: nn.Module, opt: Any, loader: Any, accelerator: Accelerator | None = None) -> None:
    """An epoch; under an accelerator, steps are of as many batches as it accumulates."""
    for x, y in loader:
        if accelerator is None:
            cross_entropy(model(x).float(), y).backward()
            opt.step()
            opt.zero_grad()
            continue
        with accelerator.accumulate(model):
            accelerator.backward(cross_entropy(model(x).float(), y))
            opt.step()
            opt.zero_grad()


def exact_in_bfloat16(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16())
    return model


@pytest.mark.parametrize(
    ("make", "start"),
    [
        (mlp, torch.float32),
        (lambda: exact_in_bfloat16(mlp()), torch.bfloat16),
        (lambda: mlp(torch.bfloat16), torch.bfloat16),
    ],
    ids=["float32", "float32 that bfloat16 holds", "bfloat16"],
)
def test_accelerate_prepare_leaves_the_state_as_it_is(make: Any, start: torch.dtype) -> None:
    plain, prepared = make(), make()
    batches = [(x.to(plain[0].weight.dtype), y) for x, y in DataLoader(vectors(), 4)]
    opts = [grouped(plain), grouped(prepared)]
    for model, opt in zip((plain, prepared), opts, strict=True):
        steps(model, opt, batches)
    prepared, inside = Accelerator(cpu=True).prepare(prepared, opts[1])
    state = inside.optimizer.state[prepared[0].weight]
    assert state["start"].dtype == start
    assert torch.equal(state["start"], make()[0].weight.to(start))
    assert_same_state(opts[0], inside.optimizer)
    steps(plain, opts[0], batches)
    steps(prepared, inside, batches)
    assert_same_bits(plain, prepared)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_accelerate_run_that_is_loaded_has_the_bits_of_a_whole_one(tmp_path: Path, dtype: torch.dtype) -> None:
    def made() -> tuple[Any, ...]:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = mlp(dtype)
        data = TensorDataset(vectors().tensors[0].to(dtype), vectors().tensors[1])
        return *accelerator.prepare(model, grouped(model, max_grad_norm=0.1), DataLoader(data, 2)), accelerator

    whole = made()
    steps(*whole)
    whole[-1].save_state(str(tmp_path))
    steps(*whole)
    resumed = made()
    with torch.no_grad():
        resumed[0][0].weight.add_(1)  # what is loaded is where it goes on from, and the start that it is pulled to
    resumed[-1].load_state(str(tmp_path))
    steps(*resumed)
    assert_same_bits(whole[0], resumed[0])
    assert_same_state(whole[1].optimizer, resumed[1].optimizer)


def test_accelerate_bound_of_the_optimizer_is_that_of_clip_grad_norm() -> None:
    """Of a decoupled pull nothing is clipped, by either; the norms are summed in another order."""
    clipped, bounded = mlp(), mlp()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    _, opt, loader = accelerator.prepare(clipped, grouped(clipped, direction="sum"), DataLoader(vectors(), 2))
    for x, y in loader:
        with accelerator.accumulate(clipped):
            accelerator.backward(cross_entropy(clipped(x), y))
            if accelerator.sync_gradients:
                assert accelerator.clip_grad_norm_(clipped.parameters(), 0.1) > 0.1
            opt.step()
            opt.zero_grad()
    steps(*accelerator.prepare(bounded, grouped(bounded, direction="sum", max_grad_norm=0.1), loader), accelerator)
    for p, q in zip(clipped.parameters(), bounded.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


# Trainer


class Sentences(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": words()[i], "labels": labels()[i]}


def half(outputs: Any, targets: Tensor, **_: Any) -> Tensor:
    """The loss of one of two micro-batches; Trainer leaves it as it is."""
    return cross_entropy(outputs.logits, targets) / 2


def by_trainer(model: Any, out: Path, direction: str, penalty: Any = None) -> None:
    kind = transformers.Trainer if penalty is None else partial(hf.PenaltyTrainer, penalty=penalty)
    quiet = {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "logging_strategy": "no", "use_cpu": True}
    arguments = transformers.TrainingArguments(
        output_dir=str(out),
        max_steps=6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        **quiet,
    )
    kind(
        model=model,
        args=arguments,
        train_dataset=Sentences(),
        compute_loss_func=half,
        optimizer_cls_and_kwargs=hf.optimizer(lr=RATE, direction=direction, **PULL),
    ).train()


def by_hand(model: Any, direction: str, penalty: Any = None) -> None:
    """Without checkpointing."""
    opt = grouped(model, direction=direction)
    for _ in range(2):
        for at, batch in enumerate(DataLoader(Sentences(), 2)):
            loss = half(model(input_ids=batch["input_ids"]), batch["labels"])
            value = None if penalty is None else penalty(input_ids=batch["input_ids"]) / 2
            if value is not None and direction == "sum":
                loss = loss + value
            elif value is not None:
                opt.take_penalty(value)
            loss.backward()
            if at % 2:
                opt.step()
                opt.zero_grad()


@pytest.mark.parametrize("penalised", [False, True])
def test_hf_micro_batches_with_checkpointing_equal_a_loop_by_hand(
    tmp_path: Path, direction: str, penalised: bool
) -> None:
    trained, looped = bert(), bert()
    if penalised:
        layers = ["bert.encoder.layer.0", "bert.encoder.layer.1.output"]
        with pytl.DELTA(trained, layers, strength=9.0) as penalty:
            by_trainer(trained, tmp_path, direction, penalty)
        with pytl.DELTA(looped, layers, strength=9.0) as penalty:
            by_hand(looped, direction, penalty)
    else:
        by_trainer(trained, tmp_path, direction)
        by_hand(looped, direction)
    assert trained.is_gradient_checkpointing
    assert_same_bits(trained, looped)


# Checkpointing


class Checkpointed(nn.Module):
    """Counts how often its layers are computed."""

    def __init__(self, checkpointing: bool) -> None:
        super().__init__()
        self.layers, self.checkpointing, self.computed = mlp(), checkpointing, 0
        self.layers[2].register_forward_hook(self.count)

    def count(self, *_: Any) -> None:
        self.computed += 1

    def forward(self, x: Tensor) -> Tensor:
        body, head = self.layers[:-1], self.layers[-1]
        return head(checkpoint(body, x, use_reentrant=False) if self.checkpointing else body(x))


def penalised_steps(model: nn.Module, opt: Any, penalty: Any) -> Iterator[None]:
    """An epoch, a step at a time."""
    for x, y in DataLoader(vectors(), 4):
        loss = cross_entropy(model(x), y)
        opt.take_penalty(penalty(x))
        loss.backward()
        opt.step()
        opt.zero_grad()
        yield


@pytest.mark.parametrize("kind", [pytl.DELTA, pytl.BSS], ids=["tapped", "hooked"])
def test_penalty_is_taken_through_checkpoints_to_the_bit(kind: Any, direction: str) -> None:
    models = [Checkpointed(checkpointing) for checkpointing in (False, True)]
    for model in models:
        opt = grouped(model, pytl.SGD, direction=direction)
        with kind(model, ["layers.2", "layers.3"], strength=9.0) as penalty:
            list(penalised_steps(model, opt, penalty))
    assert models[1].computed == 3 * models[0].computed  # in the forward pass, and in that of either backward pass
    assert_same_bits(*models)


@pytest.mark.parametrize("make", [bert, llama])
def test_penalty_is_taken_through_transformers_checkpoints_to_the_bit(make: Any, direction: str) -> None:
    layers = ["bert.encoder.layer.1"] if make is bert else ["model.layers.1", "model.layers.0.mlp"]
    models = [make(), make()]
    models[1].gradient_checkpointing_enable()
    for model in models:
        opt = grouped(model, direction=direction)
        with pytl.DELTA(model, layers, strength=9.0) as penalty:
            for ids, classes in DataLoader(TensorDataset(words(), labels()), 4):
                loss = model(input_ids=ids, labels=classes if make is bert else ids).loss
                opt.take_penalty(penalty(input_ids=ids))
                loss.backward()
                opt.step()
                opt.zero_grad()
    assert_same_bits(*models)


# Tied weights


@pytest.mark.parametrize("named", [True, False], ids=["param_groups", "parameters"])
@pytest.mark.parametrize("make", [llama, lambda: transformers.BertForMaskedLM(BERT)], ids=["Llama", "BERT"])
def test_tied_embedding_is_decayed_once(make: Any, named: bool) -> None:
    model = make()
    embedding = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is embedding
    groups = pytl.param_groups(model, weight_decay=0.5, verbose=False) if named else model.parameters()
    opt = pytl.AdamW(groups, lr=0.1, weight_decay=0.5)
    assert sum(p is embedding for group in opt.param_groups for p in group["params"]) == 1
    before = embedding.detach().clone()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()
    torch.testing.assert_close(embedding.detach(), before * (1 - 0.1 * 0.5))


def test_tied_embedding_is_transferred_where_the_rest_of_the_head_is_new(tmp_path: Path) -> None:
    transformers.BertModel(BERT).save_pretrained(tmp_path)
    model = transformers.BertForMaskedLM.from_pretrained(tmp_path)
    role = {name: group["role"] for group in pytl.param_groups(model, **PULL) for name, _ in group["params"]}
    assert role["bert.embeddings.word_embeddings.weight"] == "transferred"
    assert role["cls.predictions.transform.dense.weight"] == "new"


# Averaged weights


def test_averaged_model_of_a_network_with_hooks_is_the_mean_of_what_was_stepped() -> None:
    model = mlp()
    opt, seen = grouped(model, direction="dtnh"), []
    with pytl.DELTA(model, ["2"], strength=9.0) as penalty:
        averaged = AveragedModel(model)
        for _ in penalised_steps(model, opt, penalty):
            averaged.update_parameters(model)
            seen.append(copy.deepcopy(model.state_dict()))
    for name, p in averaged.module.named_parameters():
        torch.testing.assert_close(p, torch.stack([state[name] for state in seen]).mean(0))


# Lightning


class Lit(L.LightningModule):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.model, self.options = mlp(), options

    def training_step(self, batch: Any, index: int) -> Tensor:
        return cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return grouped(self.model, **self.options)


def fitted(module: Lit, **options: Any) -> nn.Module:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, **quiet, **options)
    trainer.fit(module, DataLoader(vectors(), 4))
    return module.model


def test_lightning_refuses_to_clip_under_amp() -> None:
    with pytest.raises(RuntimeError, match="AdamW, does not allow for gradient clipping"):
        fitted(Lit(), precision="bf16-mixed", gradient_clip_val=0.1)


def test_lightning_bound_of_the_optimizer_holds_under_amp() -> None:
    model = fitted(Lit(max_grad_norm=0.1), precision="bf16-mixed")
    looped = mlp()
    opt = grouped(looped, max_grad_norm=0.1)
    for x, y in DataLoader(vectors(), 4):
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(looped(x), y)
        loss.backward()
        assert math.hypot(*(p.grad.norm() for p in looped.parameters())) > 0.1
        opt.step()
        opt.zero_grad()
    assert_same_bits(model, looped)


def test_lightning_clips_without_amp_as_the_optimizers_bound_does() -> None:
    clipped = fitted(Lit(direction="sum"), gradient_clip_val=0.1)
    bounded = fitted(Lit(direction="sum", max_grad_norm=0.1))
    for p, q in zip(clipped.parameters(), bounded.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


# PEFT


HEAD = "base_model.model.classifier"


def adapted(model: Any = None, seed: int = 4) -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"])
    return peft.get_peft_model(model or bert(), config)


def learn(model: Any, opt: Any, begin: int, end: int) -> None:
    model.train()
    for at in range(begin, end):
        rows = slice(4 * (at % 3), 4 * (at % 3) + 4)
        model(input_ids=words()[rows], labels=labels()[rows]).loss.backward()
        opt.step()
        opt.zero_grad()


def lora_optimizer(model: Any, **options: Any) -> Any:
    groups = pytl.param_groups(model, head=HEAD, sp_decay=0.5, verbose=False)
    return pytl.AdamW(groups, lr=0.05, direction="dtnh", **options)


@pytest.mark.parametrize("head", [None, HEAD])
def test_lora_adapters_are_anchored_and_the_new_head_is_free(head: str | None) -> None:
    groups = pytl.param_groups(adapted(), head=head, sp_decay=0.5, verbose=False)
    pulled = {name: group["sp_decay"] for group in groups for name, _ in group["params"]}
    new = {name for group in groups if group["role"] == "new" for name, _ in group["params"]}
    assert len(pulled) == 2 * 2 * 2 + 2  # A and B of two layers' queries and values, and the head
    assert {pull for name, pull in pulled.items() if "lora_" in name} == {0.5}
    assert new == {f"{HEAD}.modules_to_save.default.{name}" for name in ("weight", "bias")}


def test_lora_of_a_language_model_has_no_head() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=2, task_type="CAUSAL_LM"))
    (group,) = pytl.param_groups(model, sp_decay=0.5, verbose=False)
    assert group["role"] == "transferred"
    assert all("lora_" in name for name, _ in group["params"])


def test_lora_adapters_of_a_loaded_network_are_anchored(tmp_path: Path) -> None:
    bert().bert.save_pretrained(tmp_path)
    model = adapted(transformers.BertForSequenceClassification.from_pretrained(tmp_path))
    groups = pytl.param_groups(model, sp_decay=0.5, verbose=False)
    assert {group["sp_decay"] for group in groups for name, _ in group["params"] if "lora_" in name} == {0.5}


def test_lora_moves_adapters_alone_and_is_merged() -> None:
    model = adapted()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    opt = lora_optimizer(model)
    learn(model, opt, 0, 6)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name
        assert ("start" in opt.state.get(p, {})) == ("lora_" in name), name
    with torch.no_grad():
        wanted = model.eval()(input_ids=words()).logits
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=words()).logits, wanted)
    assert not any("lora_" in name for name, _ in merged.named_parameters())


def test_lora_run_that_is_loaded_has_the_bits_of_a_whole_one(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    whole = adapted()
    opt = lora_optimizer(whole)
    learn(whole, opt, 0, 3)
    whole.save_pretrained(tmp_path)
    torch.save(opt.state_dict(), tmp_path / "optimizer.pt")
    learn(whole, opt, 3, 6)

    resumed = peft.PeftModel.from_pretrained(bert(), tmp_path, is_trainable=True)
    again = lora_optimizer(resumed)
    again.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    learn(resumed, again, 3, 6)
    assert_same_bits(whole, resumed)


def test_lora_run_of_trainer_that_is_loaded_has_the_bits_of_a_whole_one(tmp_path: Path) -> None:
    def run(name: str, checkpoint: str | None = None) -> Any:
        quiet = {"report_to": [], "disable_tqdm": True, "logging_strategy": "no", "use_cpu": True}
        saved = {"save_strategy": "steps", "save_steps": 3}
        out = str(tmp_path / name)
        model = adapted()
        transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(
                output_dir=out, max_steps=6, per_device_train_batch_size=4, **saved, **quiet
            ),
            train_dataset=Sentences(),
            optimizer_cls_and_kwargs=hf.optimizer(lr=RATE, head=HEAD, direction="dtnh", **PULL),
        ).train(resume_from_checkpoint=checkpoint)
        return model

    assert_same_bits(run("whole"), run("resumed", str(tmp_path / "whole" / "checkpoint-3")))


def test_lora_penalty_is_taken_through_checkpoints_to_the_bit() -> None:
    models = [adapted(), adapted()]
    models[1].gradient_checkpointing_enable()
    models[1].enable_input_require_grads()
    for model in models:
        opt = lora_optimizer(model.train())
        with pytl.DELTA(model, ["base_model.model.bert.encoder.layer.1"], strength=9.0) as penalty:
            for ids, classes in DataLoader(TensorDataset(words(), labels()), 4):
                loss = model(input_ids=ids, labels=classes).loss
                opt.take_penalty(penalty(input_ids=ids))
                loss.backward()
                opt.step()
                opt.zero_grad()
    assert_same_bits(*models)


def test_lora_adapters_are_pulled_to_their_start_and_by_weight_decay_to_zero() -> None:
    """Without gradients: the pull alone, from adapters that were moved."""
    found = {}
    for strength in ("sp_decay", "weight_decay"):
        model = adapted()
        opt = pytl.AdamW(pytl.param_groups(model, head=HEAD, **{strength: 1.0}, verbose=False), lr=0.1)
        adapters = {name: p for name, p in model.named_parameters() if "lora_" in name}
        for moved in (0, 1):
            for p in adapters.values():
                p.grad = torch.zeros_like(p)
                p.data += moved
            opt.step()
        found[strength] = {name: p.detach().clone() for name, p in adapters.items()}
    start = dict(adapted().named_parameters())
    for name, p in found["sp_decay"].items():
        torch.testing.assert_close(p, start[name] + 0.9)
    for name, p in found["weight_decay"].items():
        torch.testing.assert_close(p, (start[name] * 0.9 + 1) * 0.9)


# timm


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """timm's optimizers with ours among them."""
    timm_stand_in.install(monkeypatch)
    import_module("pytl.integrations.timm").register()
    return import_module("timm.optim")


def test_timm_knows_what_the_optimizers_take(timm: Any) -> None:
    """As its entries for torch's own say: options that an optimizer lacks are dropped on the way."""
    adamw, sgd = timm.get_optimizer_info("pytl-adamw"), timm.get_optimizer_info("pytl-sgd")
    assert (adamw.opt_class, adamw.has_eps, adamw.has_betas, adamw.num_betas) == (pytl.AdamW, True, True, 2)
    assert (adamw.has_momentum, adamw.defaults) == (False, None)
    assert (sgd.opt_class, sgd.has_eps, sgd.has_betas, sgd.has_momentum) == (pytl.SGD, False, False, True)
    assert sgd.defaults == {"nesterov": True}
    opt = timm.create_optimizer_v2(mlp(), "pytl-sgd", lr=0.1, eps=1e-8, betas=(0.9, 0.9))
    assert (opt.defaults["momentum"], opt.defaults["nesterov"]) == (0.9, True)


def test_timm_hands_options_on_to_all_parameters(timm: Any) -> None:
    opt = timm.create_optimizer_v2(mlp(), "pytl-adamw", lr=0.1, sp_decay=0.5, direction="dtnh", weight_decay=0.2)
    assert isinstance(opt, pytl.AdamW)
    assert {(g["lr"], g["sp_decay"], g["direction"]) for g in opt.param_groups} == {(0.1, 0.5, "dtnh")}
    assert sorted(g["weight_decay"] for g in opt.param_groups) == [0.0, 0.2]  # of vectors and of matrices


def test_timm_takes_our_groups_with_rates_that_are_set_once(timm: Any) -> None:
    groups = partial(pytl.param_groups, head="4", lr=0.1, layer_decay=0.5, sp_decay=0.5, verbose=False)
    opt = timm.create_optimizer_v2(mlp(), "pytl-adamw", lr=0.1, weight_decay=0.2, param_group_fn=groups)
    assert {(g["lr"], g["role"]) for g in opt.param_groups} == {
        (0.025, "transferred"),
        (0.05, "transferred"),
        (0.1, "new"),
    }
    assert {g["sp_decay"] for g in opt.param_groups if g["role"] == "new"} == {0.0}
    assert {g["weight_decay"] for g in opt.param_groups} == {0.0}
    assert not any("lr_scale" in g for g in opt.param_groups)  # timm's schedulers would multiply by it


def test_timm_reads_names_from_their_last_underscore_on(timm: Any) -> None:
    assert type(timm.create_optimizer_v2(mlp(), "pytl_adamw", lr=0.1)) is torch.optim.AdamW


@pytest.mark.parametrize("old", [False, True])
def test_timm_is_named_where_it_is_missing_or_old(monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    timm_stand_in.install(monkeypatch)
    if old:
        monkeypatch.delattr("timm.optim.OptimInfo")
    else:
        monkeypatch.setitem(sys.modules, "timm.optim", None)
    wanted = r'pip install --upgrade "timm>=1.0.12"' if old else r'timm is needed here .* pip install "pytl\[timm\]"'
    with pytest.raises(ImportError, match=wanted):
        import_module("pytl.integrations.timm")
