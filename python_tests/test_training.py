"""Training: objectives, times, label drop, averages, checkpoints, exact resuming."""

import json
import math

import pytest
import torch

import pyflowcore as pfc
from pyflowcore import models, training
from pyflowcore.training import EMA, TrainConfig, Trainer, atomic, checkpoints, times

pytest.importorskip("safetensors")


@pytest.fixture(autouse=True)
def one_thread():
    """Work this small is done sooner by one thread, on a machine that is busy above all."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seeds_of(count, run=0):
    return (run << 32) + torch.arange(count)


def data_of(count=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 4, 4, generator=generator), torch.arange(count) % 3


def model_of(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.DiT(size=4, channels=1, patch=2, width=8, depth=1, heads=2, num_classes=3)


def trainer_of(**changes):
    config = TrainConfig(**({"batch_size": 4, "warmup": 3, "seed": 7} | changes))
    return Trainer(model_of(), *data_of(), config)


# ------------------------------------------------------------------------------------------------ objectives and times
def test_flow_loss_is_the_closed_form_on_the_linear_path():
    data, seeds = torch.randn(6, 3), seeds_of(6)
    t = times.logit_normal(seeds, 5).float()
    x0 = pfc.randn(seeds, (3,), stream=times.NOISE_STREAM, draw=5)
    seen = []

    def net(x, time, shift):
        seen.append((x, time))
        return torch.full_like(x, shift)

    loss = training.flow_matching_loss(net, data, seeds, draw=5, shift=0.5)
    torch.testing.assert_close(loss, (0.5 - (data - x0)).square().mean())
    torch.testing.assert_close(seen[0][0], t[:, None] * data + (1 - t[:, None]) * x0)
    torch.testing.assert_close(seen[0][1], t)


def test_diffusion_loss_is_the_closed_form_on_the_vp_path():
    data, seeds = torch.randn(6, 3), seeds_of(6)
    s = 1 - times.uniform(seeds, 2)
    alpha = torch.exp(-0.25 * s**2 * 19.9 - 0.05 * s)[:, None]
    x0 = pfc.randn(seeds, (3,), stream=times.NOISE_STREAM, draw=2)
    seen = []

    def net(x, time):
        seen.append(x)
        return torch.zeros_like(x)

    torch.testing.assert_close(training.diffusion_loss(net, data, seeds, draw=2), x0.square().mean())
    expected = alpha * data + torch.sqrt(1 - alpha**2) * x0
    torch.testing.assert_close(seen[0], expected.float(), rtol=1e-4, atol=1e-4)


def test_a_sample_of_a_batch_has_noise_and_time_of_its_own_and_every_step_other_ones():
    a, b = times.logit_normal(seeds_of(8), 0), times.logit_normal(seeds_of(3), 0)
    assert torch.equal(a[:3], b)
    assert not torch.equal(a, times.logit_normal(seeds_of(8), 1))
    assert not torch.equal(a, times.logit_normal(seeds_of(8, run=1), 0))
    assert len(a.unique()) == 8


def test_time_distributions():
    seeds = seeds_of(20_000)
    uniform, logit = times.uniform(seeds, 0), torch.logit(times.logit_normal(seeds, 0, mean=0.5, std=2.0))
    assert uniform.dtype == torch.float64
    grid = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    assert (uniform.quantile(grid) - grid).abs().max() < 0.015
    assert abs(float(logit.mean()) - 0.5) < 0.05 and abs(float(logit.std()) - 2.0) < 0.05
    assert float(uniform.min()) > 0 and float(uniform.max()) < 1


def test_label_drop_share_and_ends():
    labels = torch.arange(20_000) % 10
    dropped = times.drop_labels(labels, 10, seeds_of(20_000), 3, probability=0.1)
    share = float((dropped == 10).double().mean())
    assert abs(share - 0.1) < 0.01
    assert torch.equal(dropped[dropped != 10], labels[dropped != 10])
    assert torch.equal(times.drop_labels(labels, 10, seeds_of(20_000), 3, probability=0.0), labels)
    assert bool((times.drop_labels(labels, 10, seeds_of(20_000), 3, probability=1.0) == 10).all())


def test_an_epoch_sees_everything_once():
    first = torch.cat([times.batch_indices(12, 4, 1, step) for step in range(3)])
    second = torch.cat([times.batch_indices(12, 4, 1, step) for step in range(3, 6)])
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(12))
    assert not torch.equal(first, second)
    assert len(times.batch_indices(13, 4, 1, 2)) == 4


# --------------------------------------------------------------------------------------------------------------- loop
def test_ema_follows_its_recursion():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 1.0)
    ema, expected = EMA(model, decay=0.5), 1.0
    for count, value in enumerate([2.0, 3.0, 5.0, 7.0, -1.0, 4.0, 4.0, 1.0, 0.0, 6.0]):
        torch.nn.init.constant_(model.weight, value)
        ema.update(model, count)
        decay = min(0.5, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * value
        assert math.isclose(float(ema.shadow["weight"]), expected, rel_tol=1e-5)
    ema.copy_to(model)
    assert math.isclose(model.weight.item(), expected, rel_tol=1e-5)


def test_warmup_is_linear_and_betas_are_passed_on():
    trainer, rates = trainer_of(warmup=3, lr=0.3), []
    for _ in range(5):
        trainer.train_step()
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.3])
    assert trainer.optimizer.param_groups[0]["betas"] == (0.9, 0.95)


def test_gradients_are_clipped():
    trainer = trainer_of(clip=1e-3)
    trainer.train_step()
    norms = [p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]
    assert float(torch.stack(norms).norm()) <= 1.001e-3


def test_training_reduces_the_loss():
    labels = torch.arange(32) % 3
    data = (labels - 1.0).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    trainer = Trainer(model_of(), data, labels, TrainConfig(batch_size=16, lr=1e-2, warmup=5))

    def loss():
        with torch.no_grad():
            return float(training.flow_matching_loss(trainer.model, data, seeds_of(32, run=9), y=labels))

    before = loss()
    trainer.run(60)
    assert trainer.step == 60 and loss() < 0.5 * before


def test_a_run_does_not_touch_torchs_generator():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    trainer_of().run(2)
    assert torch.equal(torch.rand(1), expected)


def test_a_model_without_classes_trains():
    trainer = Trainer(models.MLP(2, hidden=8, depth=1), torch.randn(10, 2), None, TrainConfig(batch_size=4))
    trainer.run(3)
    assert trainer.step == 3


# -------------------------------------------------------------------------------------------------------- checkpoints
@pytest.mark.parametrize("objective", ["flow", "diffusion"])
def test_resuming_is_exact(tmp_path, objective):
    whole = trainer_of(objective=objective)
    whole.run(9)
    part = trainer_of(objective=objective)
    part.run(4)
    part.save(tmp_path / "c.safetensors")
    torch.rand(5)  # whatever happens to torch's generator in between
    again = Trainer.resume(tmp_path / "c.safetensors", *data_of())
    assert again.step == 4 and again.config == whole.config
    again.run(9)
    assert torch.equal(again.loss, whole.loss)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    for name, tensor in whole.ema.shadow.items():
        assert torch.equal(again.ema.shadow[name], tensor), name
    expected, found = whole.optimizer.state_dict(), again.optimizer.state_dict()
    assert expected["param_groups"] == found["param_groups"]
    for index, state in expected["state"].items():
        for key, tensor in state.items():
            assert torch.equal(found["state"][index][key], tensor), (index, key)


def test_two_saves_of_one_state_are_the_same_bytes(tmp_path):
    trainer = trainer_of()
    trainer.run(1)
    trainer.save(tmp_path / "a")
    Trainer.resume(tmp_path / "a", *data_of()).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_checkpoint_is_a_field_with_its_path_and_prediction(tmp_path):
    trainer = trainer_of(objective="diffusion", lr=0.1)
    trainer.run(5)
    trainer.save(tmp_path / "c")
    checkpoint = training.load_checkpoint(tmp_path / "c")
    assert checkpoint.objective == training.DIFFUSION and checkpoint.step == 5
    field = checkpoint.field()
    sampler = pfc.Sampler(pfc.plan("ddim", steps=3, path="vp", prediction="noise"))
    x = sampler(field, shape=(1, 4, 4), seeds=range(2), cond={"y": torch.tensor([0, 1])})
    assert x.shape == (2, 1, 4, 4) and bool(x.isfinite().all())
    x, t, y = torch.randn(2, 1, 4, 4), torch.rand(2), torch.tensor([0, 1])
    averaged, last = checkpoint.model(), checkpoint.model(ema=False)
    assert not averaged.training
    assert torch.equal(last(x, t, y), trainer.model(x, t, y))
    assert not torch.equal(averaged(x, t, y), last(x, t, y))
    with pytest.raises(ValueError, match="prediction"):
        pfc.Sampler(pfc.plan("euler", steps=3))(field, shape=(1, 4, 4), seeds=range(2))


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "c"
    atomic.write_bytes(path, b"old")

    def fail(*_):
        raise OSError("no")

    monkeypatch.setattr(atomic.os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        atomic.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_atomic_writes_keep_the_mode_and_refuse_folders(tmp_path):
    path = tmp_path / "c"
    atomic.write_bytes(path, b"1")
    path.chmod(0o640)
    atomic.write_bytes(path, b"2")
    assert path.read_bytes() == b"2" and path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(ValueError, match="is a folder"):
        atomic.write_bytes(tmp_path, b"")
    with pytest.raises(ValueError, match="does not exist"):
        atomic.write_bytes(tmp_path / "no" / "c", b"")


@pytest.mark.parametrize(
    "path",
    [
        pfc.paths.VP(0.2, 12.0),
        pfc.paths.table([0, 0.3, 0.6, 1], [0, 0.4, 0.7, 1], [1, 0.6, 0.3, 0]),
        pfc.paths.custom(lambda t: t, lambda t: 1 - t),
    ],
)
def test_a_checkpoint_keeps_a_path_that_is_more_than_a_name(tmp_path, path):
    trainer = trainer_of()
    checkpoints.save(
        tmp_path / "c", model=trainer.model, ema=trainer.ema, optimizer=None, step=0, training={}, data="",
        objective=training.Objective(path=path, prediction="data", times="uniform"),
    )  # fmt: skip
    assert training.load_checkpoint(tmp_path / "c").field().path == path


def test_resuming_refuses_what_would_not_be_exact(tmp_path):
    trainer = trainer_of()
    trainer.run(1)
    trainer.save(tmp_path / "c")
    data, labels = data_of()
    with pytest.raises(ValueError, match="data must be what"):
        Trainer.resume(tmp_path / "c", data + 1, labels)
    with pytest.raises(ValueError, match="data must be what"):
        Trainer.resume(tmp_path / "c", data, labels.flip(0))
    checkpoints.save(
        tmp_path / "d",
        model=trainer.model,
        ema=trainer.ema,
        objective=training.FLOW,
        optimizer=None,
        step=1,
        training={},
        data="",
    )
    with pytest.raises(ValueError, match="optimizer"):
        training.load_checkpoint(tmp_path / "d").restore_optimizer(trainer.optimizer)


def test_files_that_are_no_checkpoints(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        training.load_checkpoint(tmp_path / "none")
    (tmp_path / "junk").write_bytes(b"\x80\x04junk" * 20)
    with pytest.raises(ValueError, match="no safetensors file"):
        training.load_checkpoint(tmp_path / "junk")
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="no pyflowcore checkpoint"):
        training.load_checkpoint(tmp_path / "other")
    save_file({"a": torch.zeros(1)}, tmp_path / "next", metadata={"pyflowcore": json.dumps({"version": 99})})
    with pytest.raises(ValueError, match="another version"):
        training.load_checkpoint(tmp_path / "next")
    save_file({"a": torch.zeros(1)}, tmp_path / "torn", metadata={"pyflowcore": json.dumps({"version": 1})})
    with pytest.raises(ValueError, match="misses"):
        training.load_checkpoint(tmp_path / "torn")


# ------------------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(objective="gan"), "objective must be one of"),
        (lambda: TrainConfig(batch_size=0), "batch_size"),
        (lambda: TrainConfig(lr=math.nan), "lr"),
        (lambda: TrainConfig(clip=0.0), "clip"),
        (lambda: TrainConfig(seed=-1), "seed"),
        (lambda: TrainConfig(label_drop=1.5), "label_drop"),
        (lambda: TrainConfig(betas=(0.9, 1.0)), "betas"),
        (lambda: TrainConfig(ema_decay=1.0), "ema_decay"),
        (lambda: TrainConfig.from_dict({"speed": 1}), "unknown training settings"),
        (lambda: Trainer(model_of(), torch.zeros(9, 1, 8, 8), torch.zeros(9).long()), "data must be"),
        (lambda: Trainer(model_of(), torch.zeros(9, 1, 4, 4), torch.zeros(9).long()), "at least one batch"),
        (lambda: Trainer(model_of(), torch.zeros(999, 1, 4, 4), None), "labels"),
        (lambda: Trainer(model_of(), torch.zeros(999, 1, 4, 4), torch.full((999,), 3)), r"\[0, 3\)"),
        (lambda: trainer_of().run(-1), "steps"),
        (lambda: times.get("cosine"), "times must be one of"),
        (lambda: times.batch_indices(3, 4, 0, 0), "batch_size"),
        (lambda: training.flow_matching_loss(lambda x, t: x[:1], torch.zeros(2, 3), seeds_of(2)), "net must"),
        (lambda: EMA(model_of(), decay=1.0), "decay"),
        (lambda: EMA(model_of()).load_state_dict({}), "parameter names"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
