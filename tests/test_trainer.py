"""Steps of training against updates written out by hand, and the schedules against counting."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sppdet.classification.classifier import SppClassifier
from sppdet.classification.config import TrainConfig
from sppdet.classification.trainer import Trainer, batches_of_epoch, size_of_epoch
from sppdet.errors import TrainingError
from sppdet.features.backbones import Backbone
from sppdet.features.head import Head
from sppdet.runs.distributed import Ranks
from sppdet.training.processes import OneProcess
from sppdet.training.sgd import Batch, Sgd


def small_classifier(*, dropout: float = 0.0, normalised: bool = False) -> SppClassifier:
    torch.manual_seed(1)
    layers = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1),
        nn.BatchNorm2d(6) if normalised else nn.Identity(),
        nn.ReLU(),
    )
    backbone = Backbone("own", layers, 6, ((2, 0.5),), None)
    return SppClassifier(backbone, (2, 1), Head(30, [8], 3, dropout), ("a", "b", "c"))


def trainer_of(classifier: SppClassifier, **settings: Any) -> Trainer:
    return Trainer(classifier, TrainConfig(**settings), seed=3, ranks=Ranks())


def random_batch(seed: int, *, count: int = 8, side: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, side, side, generator=generator)
    return x, torch.randint(0, 3, (count,), generator=generator)


def tensors(classifier: SppClassifier) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in classifier.state_dict().items()}


def assert_equal_tensors(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def plain_scores(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The same net written out: convolution, 2×2 and 1×1 bins, two linear layers."""
    maps = F.conv2d(x, weights["conv.0.weight"], weights["conv.0.bias"], 2, 1).relu()
    bins = [F.adaptive_max_pool2d(maps, n).permute(0, 2, 3, 1).flatten(1) for n in (2, 1)]
    hidden = torch.cat(bins, dim=1) @ weights["head.fc6.weight"].T + weights["head.fc6.bias"]
    return hidden.relu() @ weights["head.fc8.weight"].T + weights["head.fc8.bias"]


def test_steps_equal_sgd_written_out() -> None:
    classifier = small_classifier()
    weights = {k: v.detach().clone().requires_grad_() for k, v in tensors(classifier).items()}
    speed = {k: torch.zeros_like(v) for k, v in weights.items()}
    trainer = trainer_of(classifier, lr=0.05, momentum=0.8, weight_decay=0.01, epochs=100)
    losses = []
    for seed in range(4):
        x, labels = random_batch(seed)
        trainer.step((x, labels), len(labels))
        scores = plain_scores(weights, x)
        loss = (scores.logsumexp(dim=1) - scores[torch.arange(8), labels]).mean()
        losses.append(float(loss.detach()))
        found = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for (name, weight), gradient in zip(weights.items(), found, strict=True):
                speed[name] = 0.8 * speed[name] + gradient + 0.01 * weight
                weight -= 0.05 * speed[name]
    for name, tensor in tensors(classifier).items():
        torch.testing.assert_close(tensor, weights[name].detach(), rtol=1e-4, atol=1e-6)
    p = trainer.progress
    assert (p.epoch, p.batch, p.seen) == (0, 4, 32)
    assert p.loss_sum == pytest.approx(8 * sum(losses), rel=1e-5)


def test_it_equals_torchs_optimizer() -> None:
    classifier = small_classifier(normalised=True)
    other = copy.deepcopy(classifier)
    trainer = trainer_of(classifier, lr=0.02, epochs=10)
    theirs = torch.optim.SGD(other.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    for seed in range(3):
        x, labels = random_batch(seed)
        trainer.step((x, labels), len(labels))
        other.train()
        theirs.zero_grad()
        F.cross_entropy(other(x), labels).backward()
        theirs.step()
    for name, tensor in tensors(classifier).items():
        torch.testing.assert_close(tensor, other.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_dropout_comes_from_the_step() -> None:
    found = []
    for noise in (1, 2):
        classifier = small_classifier(dropout=0.5)
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        trainer = trainer_of(classifier)
        for seed in range(2):
            trainer.step(random_batch(seed), 8)
        assert torch.equal(torch.get_rng_state(), state)
        found.append(tensors(classifier))
    assert_equal_tensors(*found)
    without = small_classifier()
    trainer = trainer_of(without)
    trainer.step(random_batch(0), 8)
    trainer.step(random_batch(1), 8)
    assert not torch.equal(tensors(without)["head.fc6.weight"], found[0]["head.fc6.weight"])


def test_every_step_has_dropout_of_its_own() -> None:
    found = []
    for epoch, batch in ((0, 0), (0, 1), (1, 0)):
        classifier = small_classifier(dropout=0.5)
        trainer = trainer_of(classifier)
        trainer.progress.epoch, trainer.progress.batch = epoch, batch
        trainer.step(random_batch(0), 8)
        found.append(tensors(classifier)["head.fc6.weight"])
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


class SecondProcess:
    rank, count = 1, 2


def test_every_process_has_dropout_of_its_own() -> None:
    def masks(processes: Any) -> list[float]:
        sgd = copy.copy(alone)
        sgd.processes = processes
        with sgd.dropout_stream(3, "test", 5):
            return torch.rand(6).tolist()

    net = nn.Linear(2, 2)
    groups = [{"params": list(net.parameters()), "lr": 0.1, "weight_decay": 0.0}]
    alone = Sgd(net, groups, momentum=0.9, mixed_precision=False, processes=OneProcess())
    first = masks(OneProcess())
    assert masks(SecondProcess()) != first == masks(OneProcess())


def test_correct_answers_are_counted() -> None:
    classifier = small_classifier()
    x, _ = random_batch(0)
    with torch.inference_mode():
        best = classifier(x).argmax(dim=1)
    labels = best.clone()
    labels[:3] = (labels[:3] + 1) % 3
    trainer = trainer_of(classifier)
    found = trainer.validate(iter([(x, labels)]))
    trainer.step((x, labels), 8)
    record, _ = trainer.end_epoch(None)
    assert record["train_error"] == found["val_error"] == 3 / 8
    assert record["train_loss"] == pytest.approx(found["val_loss"], rel=1e-5)


def test_validation_is_over_all_batches_and_changes_nothing() -> None:
    classifier = small_classifier(dropout=0.5, normalised=True)
    before = tensors(classifier)
    batches = [random_batch(seed, count=count) for seed, count in ((0, 8), (1, 3))]
    found = trainer_of(classifier).validate(iter(batches))
    assert_equal_tensors(tensors(classifier), before)
    x, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.inference_mode():
        scores = classifier.eval()(x)
    assert found["val_loss"] == pytest.approx(float(F.cross_entropy(scores, labels)), rel=1e-5)
    wrong = int((scores.argmax(dim=1) != labels).sum())
    assert found["val_error"] == pytest.approx(wrong / 11)
    assert 0 < wrong < 11


def test_every_image_once_an_epoch() -> None:
    config = TrainConfig(batch_size=10)
    orders = []
    for epoch in range(3):
        batches = batches_of_epoch(47, config, epoch, seed=1)
        sizes = [len(batch) for batch in batches]
        assert len(sizes) == 5 and set(sizes) == {9, 10}
        order = np.concatenate(batches).tolist()
        assert sorted(order) == list(range(47)) != order
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]
    again = batches_of_epoch(47, config, 1, seed=1)
    assert np.concatenate(again).tolist() == orders[1]
    assert np.concatenate(batches_of_epoch(47, config, 1, seed=2)).tolist() != orders[1]
    assert [len(batch) for batch in batches_of_epoch(4, config, 0, seed=1)] == [4]


def test_sizes_in_turns() -> None:
    config = TrainConfig(sizes=[224, 180, 96])
    sizes = [size_of_epoch(config, epoch, seed=1) for epoch in range(7)]
    assert sizes == [224, 180, 96, 224, 180, 96, 224]


def test_sizes_in_a_range() -> None:
    config = TrainConfig(sizes=[34, 30], size_choice="range")
    sizes = [size_of_epoch(config, epoch, seed=1) for epoch in range(200)]
    assert set(sizes) == {30, 31, 32, 33, 34}
    assert sizes == [size_of_epoch(config, epoch, seed=1) for epoch in range(200)]
    assert sizes != [size_of_epoch(config, epoch, seed=2) for epoch in range(200)]


def rates(trainer: Trainer, errors: list[float]) -> list[float]:
    """The learning rate of every epoch when their validation errors are these."""
    found = []
    for error in errors:
        found.append(trainer.lr())
        record, _ = trainer.end_epoch({"val_error": error})
        assert record["lr"] == found[-1]
    return found


def test_the_rate_in_steps() -> None:
    trainer = trainer_of(small_classifier(), lr=1.0, epochs=10, schedule="step", steps=[0.5, 0.8])
    expected = [1, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01]
    assert rates(trainer, [0.5] * 10) == pytest.approx(expected)


def test_the_rate_on_plateaus() -> None:
    trainer = trainer_of(
        small_classifier(), lr=1.0, epochs=20, schedule="plateau", patience=2, drops=2
    )
    errors = [0.9, 0.8, 0.8, 0.7, 0.7, 0.8, 0.6, 0.6, 0.6, 0.6, 0.6, 0.5]
    # epoch 4 is the best; 5 and 6 are no better: a drop; 8 and 9: another, the last there is
    expected = [1, 1, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01]
    assert rates(trainer, errors) == pytest.approx(expected)
    assert (trainer.progress.best_epoch, trainer.progress.best_error) == (12, 0.5)
    assert trainer.progress.drops == 2


def test_the_best_epoch() -> None:
    trainer = trainer_of(small_classifier())
    best = [trainer.end_epoch({"val_error": e})[1] for e in (0.5, 0.5, 0.4, 0.45, 0.3)]
    assert best == [True, False, True, False, True]
    alone = trainer_of(small_classifier())
    assert [alone.end_epoch(None)[1] for _ in range(3)] == [True] * 3  # nothing to choose by


def test_the_step_uses_the_rate_of_its_epoch() -> None:
    moved = []
    for epoch in (0, 1):
        classifier = small_classifier()
        before = tensors(classifier)
        trainer = trainer_of(
            classifier, lr=0.1, epochs=2, schedule="step", steps=[0.5], momentum=0.0
        )
        trainer.progress.epoch = epoch
        trainer.step(random_batch(0), 8)
        moved.append({k: v - before[k] for k, v in tensors(classifier).items()})
    for name, change in moved[0].items():
        torch.testing.assert_close(moved[1][name], change / 10, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops(value: float) -> None:
    classifier = small_classifier()
    trainer = trainer_of(classifier)
    trainer.step(random_batch(0), 8)
    trainer.end_epoch(None)
    trainer.step(random_batch(1), 8)
    before = tensors(classifier)
    x, labels = random_batch(2)
    x[0, 0, 0, 0] = value
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) in epoch 2, batch 2; expected"):
        trainer.step((x, labels), 8)
    assert_equal_tensors(tensors(classifier), before)


@pytest.mark.parametrize("normalised", [False, True])
def test_going_on_from_a_state(normalised: bool) -> None:
    settings: dict[str, Any] = {"lr": 0.05, "patience": 1, "epochs": 9}
    straight = small_classifier(dropout=0.3, normalised=normalised)
    one = trainer_of(straight, **settings)
    for seed in range(3):
        one.step(random_batch(seed), 8)
    one.end_epoch({"val_error": 0.5})
    one.end_epoch({"val_error": 0.5})
    one.step(random_batch(3), 8)
    kept, about = one.state()
    kept = {k: v.clone(memory_format=torch.contiguous_format) for k, v in kept.items()}
    about = json.loads(json.dumps(about))
    one.step(random_batch(4), 8)

    resumed = small_classifier(dropout=0.3, normalised=normalised)
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.add_(1.0)
    two = trainer_of(resumed, **settings)
    two.restore(kept, about)
    assert (two.progress.epoch, two.progress.batch, two.progress.drops) == (2, 1, 1)
    two.step(random_batch(4), 8)
    assert_equal_tensors(tensors(resumed), tensors(straight))
    assert two.progress == one.progress


def test_a_state_from_the_very_start() -> None:
    trainer = trainer_of(small_classifier())
    state, about = trainer.state()
    assert "best_error" not in about  # JSON has no infinity
    assert {k.split(".")[0] for k in state} == {"net"}
    other = trainer_of(small_classifier())
    other.restore(state, json.loads(json.dumps(about)))
    assert other.progress == trainer.progress and other.progress.best_error == math.inf
