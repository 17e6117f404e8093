"""The optimizer and RIFLE in Hugging Face's and Lightning's Trainer: against tables and loops by hand, and resumed."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import transformers
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import pytl
from pytl.integrations import hf
from pytl.integrations import lightning as pl

RATE = 0.01
TABLES = {  # total steps, periods -> after which steps the head is new
    (12, 1): [],
    (12, 3): [4, 8],
    (7, 4): [2, 4, 5],
}


def wanted_rate(total: int, resets: list[int], step: int) -> float:
    """The head's rate in the optimizer's step after `step` others."""
    begins = max([0, *(at for at in resets if at <= step)])
    ends = min([total, *(at for at in resets if at > step)])
    return RATE * (1 + math.cos(math.pi * (step - begins) / (ends - begins))) / 2 if resets else RATE


def assert_same_bits(one: nn.Module, other: nn.Module) -> None:
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name


class Random(Dataset):
    """Twelve sentences of four words, and their classes."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        words = torch.randint(0, 20, (4,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": words, "labels": torch.tensor(i % 2)}


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return (Random()[i % 12] for i in range(1000))


# Hugging Face


def classifier(**options: Any) -> Any:
    torch.manual_seed(1)
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**sizes, intermediate_size=8, max_position_embeddings=8, **options)
    return transformers.BertForSequenceClassification(config)


class Watch(transformers.TrainerCallback):
    """Stands after RIFLE's callback: the steps at which the head was replaced, and the rates that steps had."""

    def __init__(self) -> None:
        self.resets: list[int] = []
        self.rates: list[list[float]] = []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **_: Any) -> None:
        self.head = model.classifier.weight.detach().clone()
        self.rates.append([group["lr"] for group in optimizer.param_groups])

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        if not torch.equal(self.head, model.classifier.weight):
            self.resets.append(state.global_step)


def trained(out: Path, *callbacks: Any, model: Any = None, data: Any = None, **options: Any) -> Any:
    defaults = {"max_steps": 12, "per_device_train_batch_size": 4, "save_strategy": "no", "use_cpu": True}
    quiet = {"report_to": [], "disable_tqdm": True, "logging_strategy": "no"}
    resume = options.pop("resume_from_checkpoint", None)
    optimizer = options.pop("optimizer", hf.optimizer(lr=RATE, head="classifier", verbose=False))
    more = options.pop("trainer", {})
    trainer = (hf.PenaltyTrainer if "penalty" in more else transformers.Trainer)(
        **more,
        model=model or classifier(),
        args=transformers.TrainingArguments(output_dir=str(out), **{**defaults, **quiet, **options}),
        train_dataset=data or Random(),
        eval_dataset=Random(),
        callbacks=[*callbacks],
        optimizer_cls_and_kwargs=optimizer,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize(("total", "periods", "accumulated"), [(12, 1, 1), (12, 3, 2), (7, 4, 1)])
def test_hf_resets_and_rates_are_those_of_the_table(tmp_path: Path, total: int, periods: int, accumulated: int) -> None:
    rifle, watch = hf.RIFLECallback(periods=periods), Watch()
    options = {"max_steps": total, "gradient_accumulation_steps": accumulated, "per_device_train_batch_size": 2}
    trained(tmp_path, rifle, watch, lr_scheduler_type="constant", **options)
    resets = TABLES[total, periods]
    assert watch.resets == resets
    assert rifle.rifle
    assert rifle.rifle.steps == total == len(watch.rates)
    for step, (*others, head) in enumerate(watch.rates):
        assert head == pytest.approx(wanted_rate(total, resets, step))
        assert others == [RATE] * len(others)


def test_hf_equals_a_loop_by_hand(tmp_path: Path) -> None:
    sequential = {"train_sampling_strategy": "sequential", "max_grad_norm": 0.0}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    options: dict[str, Any] = {"periods": 3, "init": "normal", "reset_state": True, "seed": 5}
    model = classifier(**still)
    trained(tmp_path, hf.RIFLECallback("classifier", **options), model=model, **sequential)

    by_hand = classifier(**still).train()
    opt = pytl.AdamW(pytl.param_groups(by_hand, head="classifier", verbose=False), lr=RATE)
    scheduler = transformers.get_scheduler("linear", opt, num_warmup_steps=0, num_training_steps=12)
    rifle = pytl.RIFLE(by_hand.classifier, opt, 12, **options)
    for _ in range(4):
        for batch in DataLoader(Random(), batch_size=4):
            by_hand(**batch).loss.backward()
            opt.step()
            scheduler.step()
            rifle.step()
            opt.zero_grad()
    assert_same_bits(model, by_hand)


PULLED = {"sp_decay": 0.1, "weight_decay": 0.01, "direction": "dtnh", "head": "classifier", "verbose": False}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.mark.parametrize("kind", [pytl.AdamW, pytl.SGD])
def test_hf_optimizer_equals_a_loop_by_hand(tmp_path: Path, kind: Any) -> None:
    sequential = {"train_sampling_strategy": "sequential", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    model = classifier(**STILL)
    trained(tmp_path, model=model, optimizer=hf.optimizer(kind, lr=RATE, **PULLED), **sequential)

    by_hand = classifier(**STILL).train()
    groups = pytl.param_groups(by_hand, head="classifier", sp_decay=0.1, weight_decay=0.01, verbose=False)
    opt = kind(groups, lr=RATE, direction="dtnh")
    for _ in range(4):
        for batch in DataLoader(Random(), batch_size=4):
            by_hand(**batch).loss.backward()
            opt.step()
            opt.zero_grad()
    assert_same_bits(model, by_hand)


def test_hf_six_steps_equal_three_and_three_resumed(tmp_path: Path) -> None:
    saved = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "optimizer": hf.optimizer(lr=RATE, **PULLED)}
    whole = trained(tmp_path / "whole", **saved).model
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    resumed = trained(tmp_path / "resumed", resume_from_checkpoint=str(checkpoint), **saved).model
    assert_same_bits(whole, resumed)


def test_hf_optimizer_finds_the_new_head_and_leaves_it_free(tmp_path: Path) -> None:
    classifier().bert.save_pretrained(tmp_path / "source")
    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "source")
    model.bert.embeddings.requires_grad_(False)
    frozen = model.bert.embeddings.word_embeddings.weight.clone()
    trainer = trained(tmp_path / "out", model=model, optimizer=hf.optimizer(lr=RATE, sp_decay=0.1, verbose=False))
    opt = trainer.optimizer.optimizer
    of = {name: group for group in opt.param_groups for name in group["param_names"]}
    assert of["classifier.weight"]["role"] == "new"
    assert of["classifier.weight"]["sp_decay"] == 0
    assert of["bert.encoder.layer.0.attention.self.query.weight"]["sp_decay"] == 0.1
    assert "start" not in opt.state[model.classifier.weight]
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, frozen)


def test_hf_optimizer_gives_layers_their_rates() -> None:
    make, options = hf.optimizer(lr=RATE, layer_decay=0.5, head="classifier", verbose=False)
    groups = make()(classifier(), **options).param_groups
    assert {(group["role"], group["lr"]) for group in groups} == {("new", RATE), ("transferred", RATE / 2)}


def test_hf_optimizer_names_unknown_options() -> None:
    with pytest.raises(TypeError, match="options must be param_groups' or AdamW's; got decay, rate"):
        hf.optimizer(lr=RATE, decay=0.1, rate=1, sp_decay=0.1)


LAYERS = ["bert.encoder.layer.0"]


@pytest.mark.parametrize("direction", ["sum", "dtnh"])
def test_hf_penalty_equals_a_loop_by_hand(tmp_path: Path, direction: str) -> None:
    sequential = {"train_sampling_strategy": "sequential", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    model = classifier(**STILL)
    with pytl.DELTA(model, LAYERS, strength=3.0) as penalty:
        options = {**PULLED, "direction": direction}
        trained(
            tmp_path,
            model=model,
            trainer={"penalty": penalty},
            optimizer=hf.optimizer(lr=RATE, **options),
            **sequential,
        )

    by_hand = classifier(**STILL).train()
    groups = pytl.param_groups(by_hand, head="classifier", sp_decay=0.1, weight_decay=0.01, verbose=False)
    opt = pytl.AdamW(groups, lr=RATE, direction=direction)
    with pytl.DELTA(by_hand, LAYERS, strength=3.0) as penalty:
        for _ in range(4):
            for batch in DataLoader(Random(), batch_size=4):
                loss = by_hand(**batch).loss
                value = penalty(input_ids=batch["input_ids"])
                if direction == "dtnh":
                    opt.take_penalty(value)
                else:
                    loss = loss + value
                loss.backward()
                opt.step()
                opt.zero_grad()
    assert_same_bits(model, by_hand)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("direction", ["sum", "dtnh"])
def test_hf_penalty_of_micro_batches_is_their_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direction: str, whole: bool
) -> None:
    """Whether Trainer divides the loss by their number or not; without a task's loss, which Trainer sums for BERT."""

    def none(outputs: Any, labels: Any, **_: Any) -> Tensor:
        return 0 * outputs.logits.sum()

    monkeypatch.setattr(hf.PenaltyTrainer, "loss_is_scaled_for_ga", whole)
    found = []
    for size, accumulated in ((4, 1), (2, 2)):
        model = classifier(**STILL)
        with torch.no_grad():
            for p in model.bert.encoder.parameters():
                p.add_(0.1)
        with pytl.DELTA(model, LAYERS, strength=3.0, source=classifier(**STILL)) as penalty:
            trained(
                tmp_path / f"{size}",
                model=model,
                trainer={"penalty": penalty, "compute_loss_func": none},
                optimizer=hf.optimizer(pytl.SGD, lr=0.1, head="classifier", verbose=False, direction=direction),
                per_device_train_batch_size=size,
                gradient_accumulation_steps=accumulated,
                max_steps=2,
                train_sampling_strategy="sequential",
                max_grad_norm=0.0,
            )
        found.append(model)
    before = classifier(**STILL).bert.encoder.layer[0].output.dense.weight + 0.1
    assert not torch.allclose(found[0].bert.encoder.layer[0].output.dense.weight, before)
    for p, q in zip(*(one.parameters() for one in found), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_hf_penalty_counts_in_training_alone(tmp_path: Path) -> None:
    model = classifier(**STILL)
    with pytl.DELTA(model, LAYERS, strength=3.0) as penalty:
        trainer = trained(tmp_path, model=model, trainer={"penalty": penalty}, max_steps=1)
        found = trainer.evaluate()["eval_loss"]
    model.eval()
    whole = next(iter(DataLoader(Random(), batch_size=12)))
    assert found == pytest.approx(model(**whole).loss.item(), rel=1e-5)


def test_hf_one_period_changes_no_bit(tmp_path: Path) -> None:
    plain = trained(tmp_path, optimizer=None).model
    assert_same_bits(plain, trained(tmp_path, hf.RIFLECallback(periods=1), optimizer=None).model)


PLATEAU = {
    "lr_scheduler_type": "reduce_lr_on_plateau",
    "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5, "mode": "max", "threshold": 10.0},
    "eval_strategy": "steps",
    "eval_steps": 1,
    "per_device_eval_batch_size": 12,
}


@pytest.mark.parametrize(
    ("stopped", "options"),
    [(3, {}), (4, {}), (5, {}), (5, PLATEAU), (7, {"restore_callback_states_from_checkpoint": True})],
    ids=["epoch's end", "reset", "middle", "scheduler of metrics", "callbacks restored"],
)
def test_hf_resumed_run_has_the_same_bits(tmp_path: Path, stopped: int, options: dict[str, Any]) -> None:
    def run(out: Path, resume: str | None = None) -> tuple[nn.Module, Watch]:
        model, watch = classifier(), Watch()
        rifle = hf.RIFLECallback(model.classifier, periods=3, init=_fill)  # neither is JSON
        saving = {"save_strategy": "steps", "save_steps": stopped, "resume_from_checkpoint": resume}
        trained(out, rifle, watch, model=model, **saving, **options)
        return model, watch

    whole, seen = run(tmp_path / "whole")
    resumed, again = run(tmp_path / "resumed", str(tmp_path / "whole" / f"checkpoint-{stopped}"))
    assert seen.resets == [4, 8]
    assert [rates[-1] for rates in seen.rates] == pytest.approx([wanted_rate(12, [4, 8], at) for at in range(12)])
    assert again.resets == [at for at in seen.resets if at > stopped]
    assert again.rates == seen.rates[stopped:]
    assert_same_bits(whole, resumed)


def _fill(head: Any) -> None:
    nn.init.normal_(head.weight, std=0.1)
    head.bias.zero_()


def test_hf_resume_refuses_other_periods(tmp_path: Path) -> None:
    trained(tmp_path, hf.RIFLECallback(periods=3), save_strategy="steps", save_steps=5)
    message = r"state must have boundaries \[0, 6, 12\]; got \[0, 4, 8, 12\]"
    with pytest.raises(ValueError, match=message):
        trained(tmp_path, hf.RIFLECallback(periods=2), resume_from_checkpoint=str(tmp_path / "checkpoint-5"))


def test_hf_goes_on_from_a_checkpoint_without_rifle(tmp_path: Path) -> None:
    trained(tmp_path, save_strategy="steps", save_steps=5)
    watch = Watch()
    checkpoint = str(tmp_path / "checkpoint-5")
    trained(tmp_path, hf.RIFLECallback(periods=3), watch, resume_from_checkpoint=checkpoint)
    assert watch.resets == [8]
    assert watch.rates[0][-1] == pytest.approx(wanted_rate(12, [4, 8], 5))


def test_hf_whole_epochs(tmp_path: Path) -> None:
    watch = Watch()
    options = {"max_steps": -1, "num_train_epochs": 5, "gradient_accumulation_steps": 2}  # epochs of 2 steps
    trained(tmp_path, hf.RIFLECallback(periods=2, whole_epochs=True), watch, **options)
    assert watch.resets == [4]


def test_hf_default_optimizer_needs_a_constant_rate(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"groups of its own for cyclic_lr, as pytl\.param_groups makes them"):
        trained(tmp_path, hf.RIFLECallback(), optimizer=None)
    watch = Watch()
    trained(tmp_path, hf.RIFLECallback(cyclic_lr=False), watch, optimizer=None)
    assert watch.resets == [4, 8]


@pytest.mark.parametrize(
    ("options", "run", "message"),
    [
        ({"periods": 13}, {}, r"periods must be in \[1, total_steps = 12\]; got 13"),
        ({"head": "clasifier"}, {}, "got 'clasifier'; did you mean classifier"),
        ({"head": nn.Linear(2, 2)}, {}, r"head must name layers of the model .*; got Linear\(in_features=2"),
        ({"whole_epochs": True}, {"max_steps": 10}, "total_steps must be whole epochs of 3 steps; got 10"),
        ({"whole_epochs": True}, {"data": Stream()}, "whole_epochs needs a loader of known length"),
    ],
)
def test_hf_bad_input_is_named_before_a_step(tmp_path: Path, options: Any, run: Any, message: str) -> None:
    model = classifier()
    with pytest.raises(ValueError, match=message):
        trained(tmp_path, hf.RIFLECallback(**options), model=model, **run)
    assert_same_bits(model, classifier())


def test_hf_tied_head_is_refused(tmp_path: Path) -> None:
    sizes = {"vocab_size": 20, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ends))
    assert model.lm_head.weight is model.transformer.wte.weight
    before = model.lm_head.weight.detach().clone()
    with pytest.raises(ValueError, match="must not share parameters with the rest of the model: its weight is tied"):
        trained(tmp_path, hf.RIFLECallback(model.lm_head, cyclic_lr=False), model=model, optimizer=None)
    assert torch.equal(model.lm_head.weight, before)


@pytest.mark.parametrize("kept", ["optimizer", "source", "nothing"])
def test_hf_warns_where_a_resumed_run_has_lost_its_starting_point(tmp_path: Path, kept: str) -> None:
    options: dict[str, Any] = {"lr": RATE, "sp_decay": 0.1, "verbose": False}
    model = classifier()
    if kept == "source":
        model.save_pretrained(tmp_path / "source")
        options["start"] = tmp_path / "source"
    saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "save_only_model": kept != "optimizer"}
    trained(tmp_path, optimizer=hf.optimizer(**options), model=model, **saving)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        resume = str(tmp_path / "checkpoint-3")
        trained(tmp_path, optimizer=hf.optimizer(**options), resume_from_checkpoint=resume, **saving)
    lost = [str(one.message) for one in told if "the weights of now become the starting point" in str(one.message)]
    assert [text.split(" without")[0] for text in lost] == (["resumed at step 3"] if kept == "nothing" else [])


# Lightning


class Digits(Dataset):
    """Twelve vectors."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Tensor:
        return torch.randn(4, generator=torch.Generator().manual_seed(i))


class Vectors(IterableDataset):
    def __iter__(self) -> Any:
        return (Digits()[i % 12] for i in range(1000))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.dropout(self.body(x), 0.3, self.training))


class Lit(L.LightningModule):
    """`schedule`: None, "step", "epoch" or "plateau"; watches as `Watch` does."""

    def __init__(self, schedule: str | None = None, optimizers: int = 1, own_group: bool = True) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.model, self.schedule = Network(), schedule
        self.optimizers_made, self.own_group = optimizers, own_group
        self.automatic_optimization = optimizers == 1
        self.before = self.model.fc.weight.detach().clone()
        self.resets: list[int] = []
        self.rates: list[list[float]] = []

    def training_step(self, x: Tensor, at: int) -> Tensor:
        loss = self.model(x).square().mean()
        self.log("loss", loss.detach(), on_step=True)
        return loss

    def configure_optimizers(self) -> Any:
        body, head = [*self.model.body.parameters()], [*self.model.fc.parameters()]
        groups = [{"params": body}, {"params": head}] if self.own_group else body + head
        opts = [pytl.SGD(groups, lr=RATE, momentum=0.9) for _ in range(self.optimizers_made)]
        if self.schedule is None:
            return opts
        if self.schedule == "plateau":
            made: Any = torch.optim.lr_scheduler.ReduceLROnPlateau(
                opts[0], patience=0, factor=0.5, mode="max", threshold=10.0
            )
            config = {"scheduler": made, "interval": "step", "monitor": "loss"}
        else:
            made = torch.optim.lr_scheduler.LambdaLR(opts[0], lambda at: 1 - at / 20)
            config = {"scheduler": made, "interval": self.schedule}
        return opts, [config]

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.rates.append([group["lr"] for group in optimizer.param_groups])

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.before = self.model.fc.weight.detach().clone()

    def on_train_batch_end(self, *args: Any) -> None:
        if not torch.equal(self.before, self.model.fc.weight):
            self.resets.append(self.trainer.global_step)
            self.before = self.model.fc.weight.detach().clone()


QUIET: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def fitted(out: Path, model: Lit, *callbacks: Any, data: Any = None, ckpt_path: str | None = None, **run: Any) -> Lit:
    accumulated = run.get("accumulate_grad_batches", 1)
    loader = DataLoader(data or Digits(), batch_size=4 // accumulated)
    ends = {} if "max_epochs" in run or "max_steps" in run else {"max_epochs": 4}
    saving = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    torch.manual_seed(2)
    trainer = L.Trainer(
        default_root_dir=out,
        accelerator="cpu",
        enable_checkpointing=saving,
        callbacks=[*callbacks],
        **QUIET,
        **ends,
        **run,
    )
    trainer.fit(model, loader, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return model


@pytest.mark.parametrize(("total", "periods", "accumulated"), [(12, 1, 1), (12, 3, 2), (7, 4, 1)])
@pytest.mark.parametrize("schedule", [None, "step", "epoch", "plateau"])
def test_lightning_resets_and_rates_are_those_of_the_table(
    tmp_path: Path, total: int, periods: int, accumulated: int, schedule: str | None
) -> None:
    rifle = pl.RIFLECallback("model.fc", periods)
    run = {"max_steps": total, "accumulate_grad_batches": accumulated}
    model = fitted(tmp_path, Lit(schedule), rifle, **run)
    resets = TABLES[total, periods]
    assert model.resets == resets
    assert rifle.rifle
    assert rifle.rifle.steps == total == len(model.rates)
    assert (model.rates[-1][0] < RATE) == bool(schedule)
    for step, (body, head) in enumerate(model.rates):
        assert head == (pytest.approx(wanted_rate(total, resets, step)) if resets else body)


def test_lightning_equals_a_loop_by_hand(tmp_path: Path) -> None:
    model = fitted(tmp_path, Lit("epoch"), pl.RIFLECallback("model.fc", 3, init="kaiming", seed=7))
    by_hand = Lit("epoch")
    (opt,), (config,) = by_hand.configure_optimizers()
    rifle = pytl.RIFLE(by_hand.model.fc, opt, 12, 3, init="kaiming", seed=7)
    torch.manual_seed(2)
    for _ in range(4):
        torch.empty((), dtype=torch.int64).random_()  # a loader's iterator draws its seed
        for x in DataLoader(Digits(), batch_size=4, generator=torch.Generator()):
            by_hand.model(x).square().mean().backward()
            opt.step()
            opt.zero_grad()
            rifle.step()
        config["scheduler"].step()
        rifle.set_rates()
    assert_same_bits(model, by_hand)


def test_lightning_one_period_changes_no_bit(tmp_path: Path) -> None:
    plain = fitted(tmp_path, Lit("step", own_group=False))
    assert_same_bits(plain, fitted(tmp_path, Lit("step", own_group=False), pl.RIFLECallback("model.fc", 1)))


@pytest.mark.parametrize("schedule", [None, "step", "epoch"])
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_lightning_resumed_run_has_the_same_bits(tmp_path: Path, schedule: str | None, epoch: int) -> None:
    def run(name: str, ckpt_path: str | None = None) -> Lit:
        saving = ModelCheckpoint(tmp_path / name, "{epoch}", save_top_k=-1)
        model, rifle = Lit(schedule), pl.RIFLECallback("model.fc", 3)
        return fitted(tmp_path, model, Seeds(), rifle, saving, ckpt_path=ckpt_path)

    whole = run("whole")
    resumed = run("resumed", str(tmp_path / "whole" / f"epoch={epoch - 1}.ckpt"))  # 3 steps an epoch: 3, 6, 9
    assert whole.resets == [4, 8]
    assert resumed.resets == [at for at in whole.resets if at > 3 * epoch]
    assert resumed.rates == whole.rates[3 * epoch :]
    assert_same_bits(whole, resumed)


class Seeds(L.Callback):
    """Lightning does not save the random numbers' state."""

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        torch.manual_seed(trainer.global_step)


def test_lightning_saves_a_reset_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=4)
    fitted(tmp_path, Lit(), saving, pl.RIFLECallback("model.fc", 3))
    saved = torch.load(tmp_path / "step=4.ckpt", weights_only=True)
    state = {"steps": 4, "rates": [RATE], "boundaries": [0, 4, 8, 12]}
    assert saved["callbacks"]["RIFLECallback"] == state
    assert saved["optimizer_states"][0]["param_groups"][1]["lr"] == RATE


def test_lightning_resume_refuses_other_periods(tmp_path: Path) -> None:
    fitted(tmp_path, Lit(), ModelCheckpoint(tmp_path, "last"), pl.RIFLECallback("model.fc", 3), max_epochs=4)
    with pytest.raises(ValueError, match=r"state must have boundaries \[0, 4, 8, 11, 15\]; got \[0, 4, 8, 12\]"):
        fitted(tmp_path, Lit(), pl.RIFLECallback("model.fc", 4), ckpt_path=str(tmp_path / "last.ckpt"), max_epochs=5)


def test_lightning_forgets_what_a_test_has_loaded(tmp_path: Path) -> None:
    saving, rifle, model = ModelCheckpoint(tmp_path, "last"), pl.RIFLECallback("model.fc", 3), Lit()
    model.test_step = model.training_step  # type: ignore[method-assign]
    loader = DataLoader(Digits(), batch_size=4)
    fitted(tmp_path, model, saving, rifle)
    other = L.Trainer(max_epochs=2, accelerator="cpu", callbacks=[rifle], enable_checkpointing=False, **QUIET)
    other.test(model, loader, ckpt_path=str(tmp_path / "last.ckpt"), verbose=False, weights_only=True)
    model.resets.clear()
    other.fit(model, loader)
    assert model.resets == [2, 4]


def test_lightning_whole_epochs(tmp_path: Path) -> None:
    rifle = pl.RIFLECallback("model.fc", 2, whole_epochs=True)
    model = fitted(tmp_path, Lit(), rifle, max_epochs=5, accumulate_grad_batches=2)  # epochs of 3 steps
    assert model.resets == [6]


@pytest.mark.parametrize(
    ("options", "module", "run", "message"),
    [
        ({}, {"optimizers": 2}, {}, "configure_optimizers must return one optimizer; got 2"),
        ({}, {}, {"max_epochs": -1}, "Trainer must know how many steps it takes: give it max_steps; got inf"),
        ({}, {}, {"data": Vectors(), "max_epochs": 1}, "give it max_steps; got -1"),
        (
            {"whole_epochs": True},
            {},
            {"data": Vectors(), "max_steps": 6},
            "whole_epochs needs a loader of known length",
        ),
        ({"whole_epochs": True}, {}, {"max_steps": 10}, "total_steps must be whole epochs of 3 steps; got 10"),
        ({"periods": 13}, {}, {}, r"periods must be in \[1, total_steps = 12\]; got 13"),
        ({"head": None}, {}, {}, "head must name a module of the model; got None, and none is found"),
        ({"head": "fc"}, {}, {}, "got 'fc'; did you mean model.fc"),
        ({}, {"own_group": False}, {}, r"groups of its own for cyclic_lr, as pytl\.param_groups makes them"),
    ],
)
def test_lightning_bad_input_is_named_before_a_step(
    tmp_path: Path, options: Any, module: Any, run: Any, message: str
) -> None:
    model = Lit(**module)
    with pytest.raises(ValueError, match=message):
        fitted(tmp_path, model, pl.RIFLECallback(**{"head": "model.fc", **options}), **run)
    assert_same_bits(model, Lit())


def test_lightning_finds_the_modules_own_head(tmp_path: Path) -> None:
    class Own(Lit):
        def __init__(self) -> None:
            super().__init__()
            self.fc = self.model.fc

    class Tied(Own):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(6, 2)
            self.other.weight = self.fc.weight

    assert fitted(tmp_path, Own(), pl.RIFLECallback()).resets == [4, 8]
    with pytest.raises(ValueError, match="must not share parameters with the rest of the model: its weight is tied"):
        fitted(tmp_path, Tied(), pl.RIFLECallback())


# Both


@pytest.mark.parametrize("kind", [hf.RIFLECallback, pl.RIFLECallback])
@pytest.mark.parametrize("name", ["total_steps", "optimizer", "model", "steps_per_epoch", "momentum"])
def test_unknown_options_are_named(kind: Any, name: str) -> None:
    message = f"options must be among lr, cyclic_lr, reset_state, init, seed; got {name}"
    with pytest.raises(TypeError, match=message):
        kind(**{name: 1})


def test_packages_are_imported_late_and_named_when_missing() -> None:
    program = """
import sys
import pytl.integrations
assert not {"transformers", "lightning"} & set(sys.modules)
sys.modules["transformers"] = sys.modules["lightning"] = None
for name, package in {"hf": "transformers", "lightning": "lightning"}.items():
    try:
        getattr(pytl.integrations, name)
    except ImportError as missing:
        assert str(missing) == f'{package} is needed here and not installed: pip install "pytl[{name}]"', missing
    else:
        raise AssertionError(name)
assert not hasattr(pytl.integrations, "keras")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
