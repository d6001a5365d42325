"""How orders of convergence are measured, for the tests and for tools/solver_table.py (which writes docs/solvers.md)."""

from __future__ import annotations

import functools

import numpy as np

import pyflowcore as pfc

from . import catalogue, executor, fields, paths, sde

# Step counts that leave errors between 1e-11 and 1e-4 or thereabouts.
STEPS = {1: (250, 500), 2: (160, 320), 3: (100, 200), 4: (80, 160), 5: (30, 60), 8: (12, 24)}
# The error constants of these are small at first, so that the slope settles late.
LATE = {
    "ab4": (300, 600), "unipc-3-bh1": (400, 800), "unipc-3-bh2": (400, 800), "deis-3-rho": (150, 300),
    "deis-4-rho": (200, 400), "deis-4-logrho": (300, 600),
}  # fmt: skip


@functools.cache
def problem(path):
    """The mixture's field, starts, and where the exact flow takes them."""
    times = grid(path, 4)
    mixture = fields.Mixture(path, [-2.0, 1.0], [0.5, 0.3], [0.4, 0.6])
    x0 = np.linspace(-1.2, 1.2, 33)
    return mixture, x0, mixture.flow(x0, times[0], times[-1])


@functools.cache
def grid(path, steps):
    """Uniform in lambda, inside (0, 1)."""
    return paths.lambda_grid(path, steps)


def counts_of(name):
    """The two numbers of steps that a deterministic solver of the catalogue is measured at."""
    return LATE.get(name, STEPS[catalogue.DETERMINISTIC[name][2]])


def measure(path, solver, options, counts, backwards=False):
    """(errors at the two numbers of steps, the slope between them)."""
    mixture, x0, exact = problem(path)
    x0, exact = (exact, x0) if backwards else (x0, exact)
    errors = []
    for steps in counts:
        times = grid(path, steps)[::-1] if backwards else grid(path, steps)
        plan = pfc.plan(solver, grid=times, path=path, **options)
        found = executor.run(plan.to_dict(), mixture.of("velocity"), x0)[-1]
        errors.append(np.abs(found - exact).max())
    return errors, np.log2(errors[0] / errors[1])


def moments(path, name, times, **more):
    """Mean and variance on Gaussian data: (of the plan, of the paper's loop, of the path at the end)."""
    solver, options = catalogue.STOCHASTIC[name]
    options = options | more
    plan = pfc.plan(solver, grid=times, path=path, **options)
    gaussian = sde.GaussianMoments(path, len(times))
    start = gaussian.start(times[0])
    by_plan = executor.run(plan.to_dict(), gaussian.velocity, start, gaussian.draw)[-1]
    by_loop = sde.BY_NAME[solver](gaussian.means, path, start, list(times), gaussian.draw, **options)
    return gaussian.of(by_plan), gaussian.of(by_loop), gaussian.exact(times[-1])


def measure_moments(path, name, counts=(120, 240)):
    """(errors of mean and variance, whichever is larger; the slope)."""
    # Noise scaled by another factor than 1 is another equation.
    more = {"s_noise": 1.0} if catalogue.STOCHASTIC[name][0] == "edm_heun" else {}
    errors = []
    for steps in counts:
        by_plan, _, exact = moments(path, name, grid(path, steps), **more)
        errors.append(np.abs(by_plan - exact).max())
    return errors, np.log2(errors[0] / errors[1])
