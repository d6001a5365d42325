"""Learned plans: the family holds every classical solver exactly, the fit beats them where they are few steps, and refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

import pyflowcore as pfc
from pyflowcore import bns
from pyflowcore.fit import _learning
from reference.fields import Mixture as NumpyMixture
from reference.fused import hidden, small
from reference.torch_fields import as_net, five, ring

FIVE = five()
SOLVERS = [
    ("euler", {}), ("midpoint", {}), ("ralston2", {}), ("ab2", {}), ("ab3", {}), ("ab4", {}), ("ddim", {}), ("dpmpp_1s", {}),
    ("dpmpp_2m", {}), ("dpmpp_3m", {}), ("unipc", {}), ("unipc", {"order": 3, "variant": "bh1"}), ("deis", {}), ("res", {}),
    ("heun3", {}), ("bosh3", {}), ("res", {"order": 3}),
]  # fmt: skip
FACTS = [
    ("linear", "velocity"),
    ("linear", "data"),
    ("vp", "noise"),
    ("trigonometric", "v"),
    ("vp", "velocity"),
]


@pytest.fixture(autouse=True)
def one_thread():
    """These tensors are far too small to share out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def noise(first, count=256, shape=(2,)):
    return pfc.randn(range(first, first + count), shape, dtype=torch.float64)


def rms(x, wanted):
    return float((x - wanted).square().mean().sqrt())


def fit(field, **changes):
    settings = {
        "shape": (2,),
        "nfe": 6,
        "dtype": torch.float64,
        "init": "ab3",
        "samples": 256,
        "validation": 128,
    }
    settings |= {"teacher": pfc.plan("ab4", 60, start="single"), "iterations": 20, "every": 10}
    return pfc.fit_plan(field, **settings | changes)


# ------------------------------------------------------------------------------------------------------ the family
@pytest.mark.parametrize(("solver", "options"), SOLVERS)
@pytest.mark.parametrize(("path", "prediction"), FACTS)
def test_a_classical_solver_in_this_form_makes_the_same_samples(solver, options, path, prediction):
    # With three evaluations a step, five steps: a plan has 16 slots at most.
    times = np.linspace(0.05, 0.97, 6 if options.get("order") == 3 or solver in ("heun3", "bosh3") else 9)
    plan = pfc.plan(solver, grid=times, path=path, prediction=prediction, **options)
    same = bns.to_plan(bns.unroll(plan), plan)
    assert (same.solver, same.nfe, same.steps, same.slots) == ("bns", plan.nfe, plan.nfe, plan.nfe - 1)
    exact = NumpyMixture(path, [-1.0, 0.4, 1.5], [0.3, 0.5, 0.2], [0.2, 0.5, 0.3])
    field = pfc.Field(as_net(exact.of(prediction)), prediction, path)
    x0 = noise(0, 64)
    wanted, found = pfc.Sampler(plan)(field, x0=x0), pfc.Sampler(same)(field, x0=x0)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_to_the_ends_of_the_path():
    for solver, options in SOLVERS:
        plan = pfc.plan(solver, nfe=8, **options)
        same = bns.to_plan(bns.unroll(plan), plan)
        wanted, found = (pfc.Sampler(p)(FIVE.of("velocity"), x0=noise(0)) for p in (plan, same))
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_the_differentiable_table_is_the_plans():
    plan = pfc.plan("unipc", 7)
    found = bns.unroll(plan)
    table, wanted = bns.table(found.a, found.b), bns.to_plan(found, plan).table.clone()
    wanted[:, 0] = 0.0  # the times travel beside the table
    assert torch.equal(table, wanted)


@pytest.mark.parametrize("n", range(2, 17))
def test_fewer_than_200_numbers(n):
    start = bns.unroll(pfc.plan("ab2", n))
    numbers = len(start.a) + len(torch.tril_indices(n, n)[0]) + len(start.times) - 2
    assert numbers == n * (n + 5) // 2 - 1 < 200


def test_the_gradient_of_a_solve_in_every_coefficient_and_time():
    """Against differences, through the differentiable sampler, with a time map, a negative sign and guidance."""
    plan = pfc.plan("midpoint", nfe=4)
    start = bns.unroll(plan)
    n = len(start.a)
    lower = tuple(torch.tril_indices(n, n))
    velocity = FIVE.of("velocity")
    field = pfc.Field(lambda x, t, y: -velocity(x, 1 - t / 1000) - y, time=lambda t: 1000 * (1 - t), sign=-1)
    cond = {"y": torch.full((3, 1), 0.3, dtype=torch.float64)}
    uncond = {"y": torch.zeros(3, 1, dtype=torch.float64)}

    def solve(a, b, inside):
        full = torch.zeros(n, n, dtype=torch.float64).index_put(lower, b)
        times = torch.cat([start.times[:1], inside, start.times[-1:]])
        sampler = pfc.Sampler(_learning(plan, bns.Coefficients(times, a, full)), pfc.CFG(1.7))
        return sampler(field, x0=noise(0, 3), cond=cond, uncond=uncond, enable_grad=True)

    leaves = (start.a.clone(), start.b[lower].clone(), start.times[1:-1].clone())
    assert gradcheck(solve, [leaf.requires_grad_() for leaf in leaves])


# --------------------------------------------------------------------------------------------------------- the fit
@pytest.mark.parametrize(
    ("mixture", "nfe", "init", "factor"), [(ring(), 6, "ab2", 3.0), (FIVE, 8, "best", 1.5)]
)
def test_it_beats_its_start_and_every_classical_solver_on_new_noise(mixture, nfe, init, factor):
    """RMS against 1000 steps of order 4 (its error is below 1e-8), on noise that the fit has not seen."""
    field = mixture.of("velocity")
    found = pfc.fit_plan(
        field, nfe=nfe, init=init, shape=(2,), dtype=torch.float64, iterations=150, every=30, samples=2048
    )
    x0 = noise(0, 1024)
    wanted = pfc.Sampler(pfc.plan("ab4", 1000, start="single"))(field, x0=x0)

    def error(plan):
        return rms(pfc.Sampler(plan)(field, x0=x0), wanted)

    learned = error(found.plan)
    assert learned < error(found.init) / factor
    tried = 0
    for name in pfc.solvers():
        try:
            plan = pfc.plan(name, nfe=nfe)
        except ValueError:  # one step takes more evaluations
            continue
        if plan.draws:
            continue
        tried += 1
        assert learned < error(plan) / 1.5, name
    assert tried > 15
    assert found.error == pytest.approx(learned, rel=0.5)  # the validation error says what to expect
    if init == "best":
        assert found.init_error == pytest.approx(min(found.solvers.values()), rel=1e-9)


def test_the_result_is_a_plan_like_any():
    found = fit(FIVE.of("velocity"))
    plan = found.plan
    assert pfc.Plan.from_json(plan.to_json()) == plan
    assert (plan.steps, plan.nfe, plan.slots) == (6, 6, 5)
    x0 = noise(0, 32)
    whole = pfc.Sampler(plan)(FIVE.of("velocity"), x0=x0)
    assert torch.equal(pfc.Sampler(plan)(FIVE.of("velocity"), x0=x0[3:4]), whole[3:4])
    path = pfc.Sampler(plan)(FIVE.of("velocity"), x0=x0, return_trajectory=True)
    assert path.states.shape == (7, 32, 2)
    assert torch.equal(path.states[-1], whole)
    assert all(a < b for a, b in zip(plan.times, plan.times[1:], strict=False))
    assert (plan.times[0], plan.times[-1]) == (0.0, 1.0)
    assert "6 evaluations" in str(found)


def test_the_same_arguments_give_the_same_plan():
    field = FIVE.of("velocity")
    first = fit(field)
    assert fit(field).plan == first.plan
    assert fit(field).history == first.history
    assert fit(field, seed=1).plan != first.plan


def test_facts_of_the_field_are_those_of_sampling():
    """A field in a foreign convention is fitted to the same numbers as the plain one."""
    velocity = FIVE.of("velocity")

    def foreign(x, t):
        assert t.dim() == 0
        return -velocity(x, (1 - t / 1000).expand(len(x)))

    plain = fit(velocity)
    other = fit(pfc.Field(foreign, sign=-1, time=lambda t: 1000 * (1 - t), time_shape="scalar"))
    torch.testing.assert_close(plain.plan.table, other.plan.table, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("path", "prediction"),
    [("linear", "data"), ("trigonometric", "velocity"), ("trigonometric", "noise"), ("linear", "v")],
)
def test_other_predictions_and_paths(path, prediction):
    """From inside the path, where every prediction determines the velocity."""
    mixture = five(path)
    field = pfc.Field(mixture.of(prediction), prediction, path)
    grid = np.linspace(0.1, 0.98, 7)
    found = fit(
        field,
        grid=grid,
        teacher="ab4",
        x0=noise(0, 200),
        shape=None,
        samples=None,
        validation=None,
        iterations=60,
    )
    assert found.error < 0.8 * found.init_error
    assert (found.plan.path.name, found.plan.prediction) == (path, prediction)
    assert (found.plan.times[0], found.plan.times[-1]) == (0.1, 0.98)


def test_conditions_guidance_and_a_network_that_is_left_alone():
    class Shifted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, x, t, y, scale):
            return self.gain * scale * FIVE.of("velocity")(x, t) + y["shift"]

    net = Shifted()
    asked = []

    def cond(seeds):
        asked.append(len(seeds))
        return {"y": {"shift": torch.sin(seeds.double())[:, None] * 0.3}}

    found = fit(
        net, cond=cond, uncond={"y": {"shift": torch.zeros(1, dtype=torch.float64)}}, shared={"scale": 1.0},
        guidance=pfc.CFG(2.0, interval=(0.1, 0.8)),
    )  # fmt: skip
    assert asked == [384]
    assert found.error < 0.8 * found.init_error
    assert net.gain.grad is None


def test_given_pairs():
    """A teacher that is no plan: pairs from anywhere. A flow that one row of this form represents exactly is found."""
    x0 = noise(0, 400)
    teacher = pfc.Sampler(pfc.plan("ab4", 100, start="single"))(FIVE.of("velocity"), x0=x0)
    options = {"shape": None, "samples": None, "validation": None}
    found = fit(FIVE.of("velocity"), teacher=(x0, teacher), iterations=40, **options)
    assert found.error < 0.7 * found.init_error
    assert found.init_error == pytest.approx(
        rms(pfc.Sampler(found.init)(FIVE.of("velocity"), x0=x0[300:]), teacher[300:]), rel=1e-9
    )


def test_the_best_validation_is_the_result_and_patience_ends():
    calls = []
    found = fit(
        FIVE.of("velocity"), iterations=400, lr=0.3, every=5, patience=3,
        callback=lambda iteration, loss, error: calls.append((iteration, error)),
    )  # fmt: skip
    assert tuple(calls) == found.history
    assert found.error == min(error for _, error in found.history)
    assert found.iteration == min(found.history, key=lambda entry: entry[1])[0]
    assert found.history[-1][0] == found.iteration + 15 < 400  # three without a new best
    x0 = noise(0, 64)
    assert torch.isfinite(pfc.Sampler(found.plan)(FIVE.of("velocity"), x0=x0)).all()


def test_a_start_that_is_never_beaten_is_returned():
    found = fit(FIVE.of("velocity"), lr=5.0, iterations=3, every=1)
    assert found.iteration == 0
    assert found.error == found.init_error
    assert found.plan == bns.to_plan(bns.unroll(found.init), found.init)


def test_times_stay_where_they_are_not_learned_or_have_no_gradient():
    assert fit(FIVE.of("velocity"), learn_times=False).plan.times == pfc.plan("ab3", 6).times

    def deaf(x, t):
        return FIVE.of("velocity")(x, t.detach())

    with pytest.warns(pfc.PyflowcoreWarning, match="no gradient in its time"):
        found = fit(deaf)
    assert found.plan.times == pfc.plan("ab3", 6).times
    assert found.error < found.init_error


def test_a_loss_that_is_not_finite_ends_the_fit_with_the_best_so_far():
    count = 0

    def breaks(x, t):
        nonlocal count
        count += x.requires_grad
        return FIVE.of("velocity")(x, t) * (float("nan") if count > 60 else 1.0)

    with pytest.warns(pfc.PyflowcoreWarning, match="not finite in iteration"):
        found = fit(breaks, iterations=100, every=5)
    assert 0 < found.iteration < 20
    assert found.error < found.init_error


def test_the_loss_of_each_sample_lowers_the_typical_error():
    """The paper's loss is the mean logarithm; compared in that measure, on new noise."""
    field = FIVE.of("velocity")
    found = fit(field, loss="log_each", iterations=60, samples=1024)
    x0 = noise(0)
    wanted = pfc.Sampler(pfc.plan("ab4", 200, start="single"))(field, x0=x0)

    def typical(plan):
        return (pfc.Sampler(plan)(field, x0=x0) - wanted).square().mean(1).log().mean().item() / 2

    assert typical(found.plan) < typical(found.init) - 0.5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"nfe": 1}, "nfe must lie in 2 to 16, got 1"),
        ({"nfe": 17}, "nfe must lie in 2 to 16, got 17"),
        ({"init": "heun", "nfe": 5}, "init: 'heun' evaluates the field at t = 0.333"),
        ({"init": "midpoint", "nfe": 7}, "init: 'midpoint' takes 6 evaluations here, nfe is 7"),
        ({"init": "nope"}, "unknown name 'nope'"),
        ({"init": "euler_maruyama"}, "init: 'euler_maruyama' draws noise"),
        ({"init": pfc.plan("ab2", 6, path="vp")}, "init is for path"),
        ({"teacher": pfc.plan("euler_maruyama", 9)}, "teacher: 'euler_maruyama' draws noise"),
        ({"teacher": pfc.plan("ab2", grid=[0.0, 0.5, 0.9])}, "teacher goes from t = 0 to 0.9"),
        ({"teacher": (torch.zeros(8, 2), torch.zeros(8, 3)), "shape": None}, r"x0 has shape \[8, 2\], x1 \[8, 3\]"),
        ({"teacher": (torch.zeros(8, 2), torch.zeros(8, 2)), "shape": None}, r"samples \+ validation"),
        ({"x0": torch.zeros(9, 2)}, "shape: given as well as x0"),
        ({"shape": None}, "shape is missing"),
        ({"grid": np.linspace(0.1, 1.0, 7), "teacher": "ab4"}, "x0 is missing: the teacher begins at t = 0.1"),
        ({"cond": {"y": torch.zeros(3)}}, r"cond\['y'\] has shape \[3\], expected 384 rows"),
        ({"loss": "mse"}, "loss must be one of log_mse, log_each, got 'mse'"),
        ({"lr": 0.0}, "lr must be a positive number"),
        ({"batch": 0}, "batch must be an integer >= 1, got 0"),
        ({"iterations": 0}, "iterations must be an integer >= 1"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"samples": 0}, "samples must be a positive integer"),
    ],
)  # fmt: skip
def test_refusals(changes, says):
    with pytest.raises(ValueError, match=says):
        fit(FIVE.of("velocity"), **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"teacher": 3}, "teacher must be"),
        ({"init": 3}, "init must be"),
        ({"nfe": 2.5}, "nfe must be an integer"),
        ({"every": 2.5}, "every must be an integer"),
    ],
)
def test_types(changes, says):
    with pytest.raises(TypeError, match=says):
        fit(FIVE.of("velocity"), **changes)


def test_a_field_without_a_gradient_is_refused():
    @torch.no_grad()
    def net(x, t):
        return FIVE.of("velocity")(x, t)

    with pytest.raises(ValueError, match="field: its output has no gradient"):
        fit(net)


def test_plans_that_have_no_such_form():
    with pytest.raises(ValueError, match="evaluates the field at t"):
        bns.unroll(pfc.plan("rk4", 3))
    with pytest.raises(ValueError, match="forgets x0"):
        rows = [{"t": 0.1, "step": 0, "a": 0.0, "b_new": 1.0, "completes_step": True}]
        rows += [{"t": 0.5, "step": 1, "b_new": 1.0, "completes_step": True}]
        head = pfc.plan("euler", 2).to_dict()
        bns.unroll(pfc.Plan.from_dict({**head, "times": [0.1, 0.5, 1.0], "rows": rows}))


def test_the_ring_in_float32():
    """The default precision, and a shift of the grid."""
    found = pfc.fit_plan(
        ring().of("velocity"), shape=(2,), nfe=5, grid=pfc.grids.shifted(1.5), iterations=60, init="ab2"
    )
    assert found.error < 0.7 * found.init_error


def test_without_gradients_around_it():
    with torch.no_grad():
        inside = fit(FIVE.of("velocity"))
    assert inside.plan == fit(FIVE.of("velocity")).plan


def test_a_fused_field_is_fitted_as_the_same_field_in_the_loop():
    """Its plans have a gradient while they are learned, so they are not for the engine, which gives none in coefficients."""
    field = small(2, width=8, depth=2)
    learned, plan = bns.unroll(pfc.plan("ab2", 3)), pfc.plan("ab2", 3)
    learned.a.requires_grad_()
    said = pfc.Sampler(_learning(plan, learned)).explain(field, shape=(2,), batch=2, enable_grad=True)
    assert said.reasons == ("the plan's coefficients or times have a gradient",)
    assert pfc.Sampler(plan).explain(field, shape=(2,), batch=2, enable_grad=True).engine == "engine"
    settings = {"nfe": 3, "init": "ab2", "teacher": pfc.plan("rk4", 8), "samples": 16, "validation": 8, "iterations": 4,
                "every": 2}  # fmt: skip
    one, other = fit(field, **settings), fit(hidden(field), **settings)
    assert one.history[-1][1] != one.history[0][1]
    np.testing.assert_allclose(one.history, other.history, rtol=1e-9)
    torch.testing.assert_close(one.plan.table, other.plan.table, rtol=1e-9, atol=1e-12)
