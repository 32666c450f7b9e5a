"""Fine-tuning: pools and batches by count, learning on toy data, going on to the same bits."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sppdet.errors import TrainingError
from sppdet.features.head import Head
from sppdet.randomness import rng
from sppdet.runs.artifacts import read_tensors, write_tensors
from sppdet.training.finetune import FineTuner, Progress, rate_factor, snapshot_batches
from sppdet.training.finetune_windows import (
    Pool,
    batches,
    draw_pool_images,
    draw_windows,
    join_windows,
    split_images,
)
from sppdet.training.sampling import IGNORED
from sppdet.training_config import FinetuneConfig

WIDTH = 10


def small(**changes: Any) -> FinetuneConfig:
    settings: dict[str, Any] = {
        "batches": 60,
        "batch_size": 16,
        "lr": 0.05,
        "snapshots": 6,
        "pool_images": 4,
        "pool_windows": 16,
    }
    return FinetuneConfig(**{**settings, **changes})


def new_head(dropout: float = 0.5) -> Head:
    torch.manual_seed(0)
    return Head(WIDTH, [12, 8], 3, dropout)


def toy_pool(number: int, count: int = 64) -> Pool:
    """Three classes apart by their first features."""
    generator = torch.Generator().manual_seed(number)
    labels = torch.arange(count) % 4 % 3  # half background
    x = torch.randn(count, WIDTH, generator=generator)
    x[torch.arange(count), labels] += 4
    return Pool(x, labels.numpy(), np.arange(count))


def trained(tuner: FineTuner) -> FineTuner:
    while not tuner.finished:
        tuner.train_on(toy_pool(tuner.progress.pool))
    return tuner


# -- snapshots ---------------------------------------------------------------------------------


def test_snapshots_are_evenly_spaced_and_the_last_is_one() -> None:
    assert snapshot_batches(small(batches=60, snapshots=6)) == {10, 20, 30, 40, 50, 60}
    assert snapshot_batches(small(batches=1060, snapshots=3)) == {353, 707, 1060}
    assert snapshot_batches(small(batches=10, snapshots=1)) == {10}
    assert snapshot_batches(small(batches=3, snapshots=20)) == {1, 2, 3}


@pytest.mark.parametrize("batches", [50, 100, 1060])
def test_snapshots_of_a_cosine_have_a_low_rate(batches: int) -> None:
    config = small(batches=batches, snapshots=4, schedule="cosine")
    found = sorted(snapshot_batches(config))
    assert len(found) == 4 and found[-1] == batches
    gaps = np.diff([0.8 * batches, *found])
    assert np.abs(gaps - 0.05 * batches).max() <= 1
    assert max(rate_factor(batch - 1, config) for batch in found) < 0.1  # of the step before
    assert snapshot_batches(small(batches=batches, snapshots=1, schedule="cosine")) == {batches}


def test_only_snapshots_are_validated() -> None:
    config = small(batches=40, snapshots=3, schedule="cosine")
    tuner = trained(FineTuner(new_head(), config, toy_pool(99), seed=1))
    assert [r["batch"] for r in tuner.history if "val_error" in r] == [35, 37, 40]
    assert len(tuner.history) == 3


# -- images, windows, batches ------------------------------------------------------------------


@pytest.mark.parametrize(("count", "held_out"), [(100, 10), (14, 1), (5, 1), (4, 0), (0, 0)])
def test_split(count: int, held_out: int) -> None:
    training, validation = split_images(count, fraction=0.1, seed=3)
    assert len(validation) == held_out
    assert sorted([*training.tolist(), *validation.tolist()]) == list(range(count))
    assert training.tolist() == split_images(count, fraction=0.1, seed=3)[0].tolist()


def test_split_of_nothing_and_by_seed() -> None:
    assert len(split_images(100, fraction=0.0, seed=3)[1]) == 0
    a, b = (split_images(100, fraction=0.1, seed=s)[1].tolist() for s in (3, 4))
    assert a != b


@pytest.mark.parametrize(("images", "pool"), [(10, 4), (12, 4), (3, 8), (7, 7), (1, 1)])
def test_every_image_once_an_epoch(images: int, pool: int) -> None:
    training = np.arange(images) * 3 + 1
    config = small(pool_images=pool)
    stream: list[int] = []
    for number in range(20):
        pairs = draw_pool_images(training, number, config=config, seed=5)
        assert len(pairs) == min(pool, images)
        stream.extend(image for image, _ in pairs)
    orders = set()
    for start in range(0, len(stream) - images + 1, images):
        epoch = stream[start : start + images]
        assert sorted(epoch) == training.tolist()
        orders.add(tuple(epoch))
    assert len(orders) > 1 or images == 1


def test_pools_are_functions_of_their_number() -> None:
    training = np.arange(9)
    pools = [draw_pool_images(training, n, config=small(), seed=5) for n in range(12)]
    np.random.seed(1)  # noqa: NPY002
    for n in (7, 3, 11, 0):
        assert draw_pool_images(training, n, config=small(), seed=5) == pools[n]
    assert pools != [draw_pool_images(training, n, config=small(), seed=6) for n in range(12)]


def test_mirrored_half_of_the_time() -> None:
    training = np.arange(50)
    config = small(pool_images=50)
    flips = [
        flip for n in range(40) for _, flip in draw_pool_images(training, n, config=config, seed=0)
    ]
    assert np.mean(flips) == pytest.approx(0.5, abs=0.04)
    never = small(pool_images=50, flip=False)
    assert not any(flip for _, flip in draw_pool_images(training, 0, config=never, seed=0))


def test_windows_of_a_image(rng: np.random.Generator) -> None:
    labels = np.array([1, 2, 0, 0, IGNORED] * 20)
    rows = draw_windows(labels, small(), rng=rng)
    assert len(rows) == len(set(rows.tolist())) == 16
    assert (labels[rows] > 0).sum() == 4 and (labels[rows] == 0).sum() == 12
    few = np.array([1, 0, 0, IGNORED])
    assert sorted(draw_windows(few, small(), rng=rng).tolist()) == [0, 1, 2]
    assert len(draw_windows(np.full(5, IGNORED), small(), rng=rng)) == 0


def test_a_quarter_of_a_batch_is_positive(rng: np.random.Generator) -> None:
    labels = rng.permutation(np.repeat([0, 1, 2], [500, 60, 50]))
    config = small(batch_size=128)
    found = list(batches(labels, config, rng=rng))
    assert len(found) == 3  # 110 // 32
    for rows in found:
        assert len(rows) == 128 and (labels[rows] > 0).sum() == 32
    used = np.concatenate(found).tolist()
    assert len(used) == len(set(used))


def test_a_pool_too_small_for_a_batch_is_repeated(rng: np.random.Generator) -> None:
    labels = np.array([0, 0, 0, 0, 0, 1])
    (rows,) = batches(labels, small(), rng=rng)
    counts = Counter(rows.tolist())
    assert counts[5] == 4
    assert sorted(counts[r] for r in range(5)) == [2, 2, 2, 3, 3]


@pytest.mark.parametrize("labels", [[0, 0], [1, 2], []])
def test_no_batch_without_both_kinds(labels: list[int], rng: np.random.Generator) -> None:
    assert list(batches(np.array(labels, dtype=np.int64), small(), rng=rng)) == []


def test_join_windows() -> None:
    pool = join_windows([torch.zeros(2, 3), torch.ones(1, 3)], [np.array([0, 2]), np.array([1])])
    assert pool.features[:, 0].tolist() == [0, 0, 1] and pool.labels.tolist() == [0, 2, 1]
    with pytest.raises(ValueError, match="ignored window"):
        join_windows([torch.zeros(1, 3)], [np.array([IGNORED])])


# -- learning ------------------------------------------------------------------------------------


def test_loss_falls_on_separable_data() -> None:
    validation = toy_pool(10_000)
    tuner = FineTuner(new_head(), small(batches=150), validation, seed=1)
    before, _ = tuner.validate(validation)
    trained(tuner)
    tuner.best_head()
    after, error = tuner.validate(validation)
    assert after < 0.3 * before and error < 0.1
    assert [record["batch"] for record in tuner.history] == [25, 50, 75, 100, 125, 150]


def test_one_step_is_sgds() -> None:
    """v = g + decay · w; w = w − lr · (momentum · v before + v), by hand for two batches."""
    config = small(batches=100, batch_size=16, lr=0.03)
    tuner = FineTuner(new_head(0.0), config, None, seed=1)
    mine = new_head(0.0)
    velocity = [torch.zeros_like(p) for p in mine.parameters()]
    for number in range(2):
        pool = toy_pool(number, count=16)
        # 16 rows with 8 positives: one batch, of 4 and of 8 repeated rows
        drawn = rng(1, "fine-tuning batches", number)
        (rows,) = batches(pool.labels, config, rng=drawn)
        labels = torch.from_numpy(pool.labels[rows])
        loss = F.cross_entropy(mine(pool.features[rows]), labels)
        gradients = torch.autograd.grad(loss, list(mine.parameters()))
        with torch.no_grad():
            for w, g, v in zip(mine.parameters(), gradients, velocity, strict=True):
                v.mul_(0.9).add_(g + 5e-4 * w)
                w.sub_(0.03 * v)
        tuner.train_on(pool)
    for ours, theirs in zip(tuner.head.parameters(), mine.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_fc6_learns_as_from_features_of_unit_mean_square(optimizer: str) -> None:
    """The features in another unit, and fc6 to match: the same training, whatever the unit."""
    unit = 64.0
    config = small(batches=12, batch_size=16, optimizer=optimizer)
    plain = FineTuner(new_head(), config, None, seed=1)
    head = new_head()
    with torch.no_grad():
        head.fc6.weight.div_(unit)
    scaled = FineTuner(head, config, None, seed=1, mean_square=unit**2)
    for number in range(2):
        pool = toy_pool(number)
        plain.train_on(pool)
        scaled.train_on(replace(pool, features=pool.features * unit))
    theirs = plain.head.state_dict()
    assert not torch.equal(theirs["fc6.weight"], new_head().fc6.weight)
    # AdamW adds 1e-8 to the root of the mean square gradient, which counts where a gradient is almost 0
    atol = 1e-6 if optimizer == "sgd" else 1e-5
    for name, ours in scaled.head.state_dict().items():
        factor = unit if name == "fc6.weight" else 1.0
        torch.testing.assert_close(ours * factor, theirs[name], rtol=1e-4, atol=atol)


def test_the_rate_drops_at_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def spy(self: torch.optim.SGD, *args: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    trained(FineTuner(new_head(), small(batches=12, drop_after=5 / 6), None, seed=1))
    assert rates == pytest.approx([0.05] * 10 + [0.005] * 2)


def test_dropout_is_on_in_training_and_off_in_validation() -> None:
    pool = toy_pool(1)
    tuner = FineTuner(new_head(), small(), None, seed=1)
    assert tuner.validate(pool) == tuner.validate(pool)
    modes: list[bool] = []
    tuner.head.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    tuner.train_on(pool)
    assert modes and all(modes)


def test_training_leaves_torchs_generator_alone() -> None:
    tuner = FineTuner(new_head(), small(), None, seed=1)
    state = torch.get_rng_state()
    tuner.train_on(toy_pool(0))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_restored_training_goes_on_to_the_same_bits(stop: int, tmp_path: Path) -> None:
    validation = toy_pool(10_000)
    whole = trained(FineTuner(new_head(), small(), validation, seed=1))
    first = FineTuner(new_head(), small(), validation, seed=1)
    for number in range(stop):
        first.train_on(toy_pool(number))
    assert not first.finished
    path = tmp_path / "state"
    write_tensors(path, first.state(), made_by="x", about=asdict(first.progress))
    state, about = read_tensors(path)
    torch.manual_seed(99)
    second = FineTuner(Head(WIDTH, [12, 8], 3, 0.5), small(), validation, seed=1)
    second.restore(state, Progress(**about))
    assert second.progress == first.progress
    trained(second)
    assert second.progress == whole.progress
    for name, tensor in whole.head.state_dict().items():
        assert torch.equal(second.head.state_dict()[name], tensor)
    best = whole.best_head().state_dict()
    for name, tensor in second.best_head().state_dict().items():
        assert torch.equal(tensor, best[name])


def test_a_loss_that_isnt_finite_is_an_error() -> None:
    tuner = FineTuner(new_head(), small(), None, seed=1)
    tuner.train_on(toy_pool(0))
    done = tuner.progress.batch
    pool = toy_pool(1)
    bad = replace(pool, features=pool.features * torch.inf)
    with pytest.raises(TrainingError, match=f"the loss is nan at batch {done}; expected a finite"):
        tuner.train_on(bad)


def test_pools_without_positives_end_in_an_error() -> None:
    tuner = FineTuner(new_head(), small(), None, seed=1)
    pool = toy_pool(0)
    background = replace(pool, labels=np.zeros_like(pool.labels))
    for _ in range(99):
        tuner.train_on(background)
    tuner.train_on(pool)  # the count starts anew
    for _ in range(99):
        tuner.train_on(background)
    with pytest.raises(TrainingError, match="100 pools in a row had no positive"):
        tuner.train_on(background)


def test_the_last_snapshot_of_least_validation_error_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the loss: it rises where the network is surer of the few windows that are wrong."""
    validated = iter([(0.4, 0.3), (0.2, 0.2), (0.1, 0.3), (0.9, 0.2), (0.6, 0.25), (0.5, 0.3)])
    tuner = FineTuner(new_head(), small(), toy_pool(10_000), seed=1)
    states: list[dict[str, torch.Tensor]] = []

    def validate(_: Pool) -> tuple[float, float]:
        states.append({k: v.clone() for k, v in tuner.head.state_dict().items()})
        return next(validated)

    monkeypatch.setattr(tuner, "validate", validate)
    trained(tuner)
    assert len(states) == 6
    assert (tuner.progress.best_batch, tuner.progress.best_error) == (40, 0.2)
    best = tuner.best_head()
    assert all(torch.equal(v, states[3][k]) for k, v in best.state_dict().items())
    assert not torch.equal(states[3]["fc6.weight"], states[5]["fc6.weight"])
    assert not best.training and not any(p.requires_grad for p in best.parameters())


def test_without_validation_the_last_snapshot_is_kept() -> None:
    tuner = trained(FineTuner(new_head(), small(), None, seed=1))
    last = {k: v.clone() for k, v in tuner.head.state_dict().items()}
    assert tuner.progress.best_batch == 60
    assert all(torch.equal(v, last[k]) for k, v in tuner.best_head().state_dict().items())


def test_validation_against_torch() -> None:
    head, pool = new_head(), toy_pool(3, count=600)  # more than one part
    loss, error = FineTuner(head, small(), None, seed=1).validate(pool)
    assert head.fc7 is not None
    plain = nn.Sequential(head.fc6, nn.ReLU(), head.fc7, nn.ReLU(), head.fc8)
    with torch.inference_mode():
        scores = plain(pool.features)
    labels = torch.from_numpy(pool.labels)
    assert loss == pytest.approx(float(F.cross_entropy(scores, labels)), rel=1e-5)
    assert error == pytest.approx(float((scores.argmax(1) != labels).float().mean()))


def test_a_process_takes_its_own_windows_of_a_batch() -> None:
    features = [torch.full((n, 2), float(i)) for i, n in enumerate((2, 0, 1))]
    labels = [np.array(part, dtype=np.int64) for part in ([1, 0], [0, 0, 2], [3])]
    pool = join_windows(features, labels)  # another process has the second image's windows
    assert pool.labels.tolist() == [1, 0, 0, 0, 2, 3] and pool.rows.tolist() == [0, 1, 5]
    x, own = pool.batch(np.array([5, 3, 0, 5, 4]))
    assert (x[:, 0].tolist(), own.tolist()) == ([2, 0, 2], [3, 1, 3])
    ((x, own),) = pool.own_batches(8)
    assert (x[:, 0].tolist(), own.tolist()) == ([0, 0, 2], [1, 0, 3])


def test_progress_starts_at_nothing() -> None:
    assert replace(Progress(), batch=0) == Progress(0, 0, float("inf"), 0, 0)
