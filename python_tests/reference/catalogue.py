"""Every solver with every set of options that the tests run, and the orders that MATHS says each must show."""

from __future__ import annotations

# name -> (solver, options, order of convergence with a start of full order)
DETERMINISTIC = {
    **{name: (name, {}, 1) for name in ("euler", "ab1", "ddim", "dpmpp_1s")},
    **{name: (name, {}, 2) for name in ("midpoint", "heun", "ralston2", "edm_heun")},
    **{name: (name, {}, 3) for name in ("heun3", "rk3", "ssprk3", "bosh3")},
    **{name: (name, {}, 4) for name in ("rk4", "rk38")},
    **{name: (name, {}, 5) for name in ("dopri5", "tsit5")},
    "dopri8": ("dopri8", {}, 8),
    "res-2": ("res", {"order": 2}, 2),
    "res-3": ("res", {"order": 3}, 3),
    **{f"ab{k}": (f"ab{k}", {"start": "single"}, k) for k in (2, 3, 4)},
    **{f"dpmpp_{k}m": (f"dpmpp_{k}m", {"start": "single"}, k) for k in (2, 3)},
    # The corrector gains an order.
    **{
        f"unipc-{k}-{variant}": ("unipc", {"order": k, "variant": variant, "start": "single"}, k + 1)
        for k in (1, 2, 3)
        for variant in ("bh1", "bh2")
    },
    **{
        f"deis-{k}-{variant}": ("deis", {"order": k, "variant": variant, "start": "single"}, k)
        for k in (1, 2, 3, 4)
        for variant in ("rho", "logrho")
    },
}

# A ramp keeps the error of its first step, so the order stops at 2, or at 3 for UniPC, whose first step is of order 2.
RAMPED = {
    name: (solver, {**options, "start": "ramp"}, min(order, 3 if solver == "unipc" else 2))
    for name, (solver, options, order) in DETERMINISTIC.items()
    if "start" in options
}

DIFFUSIONS = ("constant", "sigma", "sigma/alpha", "cosine", "sine")

# name -> (solver, options); these draw noise.
STOCHASTIC = {
    "dpmpp_2m_sde": ("dpmpp_2m_sde", {}),
    "dpmpp_2m_sde-0.6": ("dpmpp_2m_sde", {"eta": 0.6}),
    "euler_ancestral": ("euler_ancestral", {}),
    "euler_ancestral-0.7": ("euler_ancestral", {"eta": 0.7}),
    "consistency": ("consistency", {}),
    "edm_heun-churn": ("edm_heun", {"s_churn": 3.0, "s_min": 0.1, "s_max": 4.0, "s_noise": 1.01}),
    **{
        f"{solver}-{diffusion}": (solver, {"diffusion": diffusion})
        for solver in ("euler_maruyama", "stochastic_heun")
        for diffusion in DIFFUSIONS
    },
}

# Those that can leave t = 0, where sigma / alpha is infinite.
FROM_ZERO = {name: case for name, case in STOCHASTIC.items() if "sigma/alpha" not in name}

EVERY = {
    name: case[:2]
    for name, case in {**DETERMINISTIC, **{f"{n}-ramp": c for n, c in RAMPED.items()}, **STOCHASTIC}.items()
}
