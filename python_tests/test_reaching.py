"""An action expert trained on demonstrations of reaching around an obstacle, against the scripted expert."""

from __future__ import annotations

import pytest
import torch

from pyflowcore.demo import reaching

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT = 400


@pytest.fixture(scope="module")
def held_out():
    return reaching.scenes(COUNT, seed=2)


@pytest.fixture(scope="module")
def policy():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = reaching.new_policy()
    reaching.train(model, reaching.scenes(20000, seed=1))
    torch.set_num_threads(threads)
    return model


@pytest.fixture(scope="module")
def moves(policy, held_out):
    return reaching.act(policy, held_out, seeds=range(COUNT))


def test_the_scripted_expert_always_arrives(held_out):
    demonstrated = reaching.demonstrate(held_out, seed=3)
    assert held_out.solved(demonstrated).min() == 1
    assert (held_out.path(demonstrated)[:, -1] - held_out.goal).abs().max() < 1e-5
    assert held_out.nearest(demonstrated).min() > reaching.RADIUS + 0.05
    left = held_out.side(demonstrated)[held_out.present] > 0
    assert 0.35 < left.float().mean() < 0.65


def test_neither_the_straight_way_nor_the_mean_of_demonstrations_does(held_out):
    """What a policy that regresses to the mean would do."""
    seen = held_out.present
    share = torch.linspace(0, 1, reaching.HORIZON + 1)[1:, None]
    straight = (held_out.goal - held_out.start)[:, None] * share / reaching.UNIT
    mean = torch.stack([reaching.demonstrate(held_out, seed=seed) for seed in range(20)]).mean(dim=0)
    assert held_out.solved(straight)[seen].mean() < 0.1 and held_out.solved(straight)[~seen].min() == 1
    assert held_out.solved(mean)[seen].mean() < 0.4


def test_distance_from_the_obstacle_by_many_points(held_out):
    demonstrated = reaching.demonstrate(held_out, seed=3)
    path = held_out.path(demonstrated)
    share = torch.linspace(0, 1, 101)[:, None]
    fine = (path[:, :-1, None] * (1 - share) + path[:, 1:, None] * share).flatten(1, 2)
    expected = (fine - held_out.obstacle[:, None]).norm(dim=-1).amin(dim=1)
    torch.testing.assert_close(
        held_out.nearest(demonstrated)[held_out.present], expected[held_out.present], rtol=0, atol=1e-3
    )
    assert held_out.nearest(demonstrated)[~held_out.present].isinf().all()


def test_the_policy_arrives(held_out, moves):
    """Of scenes that it has not seen; the scripted expert solves all, the straight way one in five, noise none."""
    solved = held_out.solved(moves)
    assert solved.mean() > 0.75
    assert solved[held_out.present].mean() > 0.7 and solved[~held_out.present].mean() > 0.7


def test_the_policy_passes_on_both_sides(policy):
    """One scene, many seeds: the obstacle is in the middle of the way."""
    count = 100
    scene = reaching.Scenes(
        torch.tensor([[-0.75, 0.0]]).expand(count, 2),
        torch.tensor([[0.75, 0.0]]).expand(count, 2),
        torch.zeros(count, 2),
        torch.ones(count, dtype=torch.bool),
    )
    found = reaching.act(policy, scene, seeds=range(count))
    assert scene.solved(found).mean() > 0.6
    assert 0.15 < (scene.side(found) > 0).float().mean() < 0.85


def test_where_an_absent_obstacle_would_be_changes_nothing(policy, held_out):
    absent = reaching.Scenes(
        held_out.start, held_out.goal, held_out.obstacle, torch.zeros(COUNT, dtype=torch.bool)
    )
    moved = reaching.Scenes(absent.start, absent.goal, absent.obstacle + 1.0, absent.present)
    found = reaching.act(policy, absent, seeds=range(COUNT))
    assert torch.equal(found, reaching.act(policy, moved, seeds=range(COUNT)))


def test_a_motion_is_a_function_of_its_scene_and_seed(policy, held_out, moves):
    few = reaching.Scenes(*(value[5:7] for value in vars(held_out).values()))
    torch.testing.assert_close(reaching.act(policy, few, seeds=[5, 6]), moves[5:7], rtol=0, atol=1e-3)


def test_both_ways_of_telling_the_time_learn():
    """A short training of the other kind."""
    model, given = reaching.new_policy(time="mlp"), reaching.scenes(256, seed=4)
    losses = torch.tensor(reaching.train(model, given, steps=60))
    assert losses[-20:].mean() < 0.6 * losses[:5].mean()
