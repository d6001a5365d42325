"""``training.fit``: the conditions it asks for, the average it leaves, and that a seed says everything."""

import pytest
import torch

from pyflowcore import models
from pyflowcore.training import TrainConfig, fit

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = TrainConfig(batch_size=16, lr=5e-3, warmup=5, ema_decay=0.9, seed=3)
MEANS = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])


def problem():
    """Points near one of two means, and which: the condition."""
    generator = torch.Generator().manual_seed(0)
    which = torch.arange(64) % 2
    return MEANS[which] + 0.1 * torch.randn(64, 2, generator=generator), which


def fitted(steps, config=CONFIG):
    torch.manual_seed(0)
    net = models.MLP(2, hidden=32, depth=2, cond_dim=2)
    data, which = problem()
    asked = []

    def conditions(rows, seeds, step):
        asked.append((rows, seeds, step))
        return {"c": MEANS[which[rows]]}

    return net, fit(net, data, conditions, steps, config), asked


def test_it_learns_from_the_condition():
    net, losses, _ = fitted(600)
    assert len(losses) == 600 and sum(losses[-50:]) < 0.25 * sum(losses[:50])
    assert not net.training
    # Data at one point m: on the linear path the velocity at x is (m - x) / (1 - t).
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(1))
    for mean in MEANS:
        answer = net(0.5 * (x + mean), torch.full((100,), 0.5), c=mean.expand(100, 2)).detach()
        assert (answer - (mean - x)).square().mean() < 0.1


def test_what_conditions_are_asked_for():
    _, _, asked = fitted(9)
    assert [step for _, _, step in asked] == list(range(9))
    epoch = torch.cat([rows for rows, _, _ in asked[:4]])
    assert torch.equal(epoch.sort().values, torch.arange(64))  # every sample once in an epoch
    assert all(torch.equal(seeds, (3 << 32) + torch.arange(16)) for _, seeds, _ in asked)


def test_a_seed_says_everything():
    first, losses, _ = fitted(20)
    again, same, _ = fitted(20)
    assert losses == same
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert fitted(20, TrainConfig(**{**vars(CONFIG), "seed": 4}))[1] != losses


def test_it_leaves_the_average_of_the_parameters():
    """By its formula from the parameters after every step, the last of which a decay of zero leaves."""
    torch.manual_seed(0)
    net = models.MLP(2, hidden=32, depth=2, cond_dim=2)
    data, which = problem()
    seen = []

    def conditions(rows, seeds, step):
        seen.append([parameter.detach().clone() for parameter in net.parameters()])
        return {"c": MEANS[which[rows]]}

    fit(net, data, conditions, 12, CONFIG)
    after = [*seen[1:], list(fitted(12, TrainConfig(**{**vars(CONFIG), "ema_decay": 0.0}))[0].parameters())]
    average = seen[0]
    for count, parameters in enumerate(after):
        decay = min(0.9, (1 + count) / (10 + count))
        average = [decay * old + (1 - decay) * new for old, new in zip(average, parameters, strict=True)]
    for found, expected, last in zip(net.parameters(), average, after[-1], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert (found - last).abs().max() > 2e-5  # ten times the tolerance: the two are told apart


def test_too_little_data_is_refused():
    with pytest.raises(ValueError, match="batch_size must be within"):
        fit(models.MLP(2), torch.zeros(8, 2), lambda rows, seeds, step: {}, 1, CONFIG)
    assert fitted(0)[1] == []
