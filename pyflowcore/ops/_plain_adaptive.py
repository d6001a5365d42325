"""adaptive_ in plain PyTorch: for devices without compiled kernels. The same order of operations as csrc/core/adaptive.hpp,
so that IEEE devices give the same bits; it reads the samples' phases, so it synchronises."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._plain_guide import _root, ordered_sum

# csrc/core/adaptive.hpp: columns of clock (float64) and of counts (int64), statuses.
CLOCK = ("t", "h", "next", "error", "rtol", "atol", "first", "slope", "from", "step")
COUNTS = ("phase", "status", "nfe", "accepted", "rejected", "row", "flags", "action")
SUCCESS, BUDGET, UNDERFLOW, NON_FINITE, UNFINISHED = range(5)
PROBE = -1  # the phase of the second evaluation of the initial step
REJECTED_LAST, NOT_FINITE_LAST = 1, 2

# csrc/core/adaptive_tableau.hpp.
POINT, TIME, ERROR, ERROR3, DENSE, FACTS = 0, 16, 17, 18, 19, 23
STAGES, DECIDES, EXTRA, ORDER, DENSE_ROWS, TWO_ERRORS = range(6)

SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
LEAST_ERROR, LEAST_BEFORE, FAR, LEAST_NEAR = 1e-30, 1e-4, 1e145, 1e-290

_LOG = (
    "0x1.5555555555555p-1", "0x1.9999999999a38p-2", "0x1.2492492476ba1p-2", "0x1.c71c72017a15cp-3",
    "0x1.745cf8f6c9119p-3", "0x1.3b1c38474d3eep-3", "0x1.0fbe478772696p-3", "0x1.0c06cf14c641bp-3",
)  # fmt: skip
_EXPM1 = (
    "0x1.61bfa22dd3437p-33", "0x1.1f7f2000f4cf3p-29", "0x1.ae642c8730352p-26", "0x1.27e4d41d6f553p-22",
    "0x1.71de3a5aa6edbp-19", "0x1.a01a01a9e80fep-16", "0x1.a01a01a0196aep-13", "0x1.6c16c16c15a6cp-10",
    "0x1.1111111111110p-7", "0x1.5555555555557p-5", "0x1.5555555555555p-3", "0x1p-1",
)  # fmt: skip


def exact_log(x: Tensor) -> Tensor:
    """exact::log of positive normal float64: csrc/core/exact_math.hpp."""
    bits = x.view(torch.int64) - 0x3FE6A09E667F3BCD
    n = (bits >> 52).double()
    f = ((bits & 0x000FFFFFFFFFFFFF) + 0x3FE6A09E667F3BCD).view(torch.float64) - 1.0
    s = f / (2.0 + f)
    z = s * s
    p = torch.full_like(z, float.fromhex(_LOG[-1]))
    for c in reversed(_LOG[:-1]):
        p = p * z + float.fromhex(c)
    low = s * z * p + n * float.fromhex("0x1.a39ef35793c76p-33")
    return n * float.fromhex("0x1.62e42fee00000p-1") + (2.0 * s + low)


def exact_exp(x: Tensor) -> Tensor:
    """exact::exp of float64 within [-700, 700]: csrc/core/exact_math.hpp."""
    half = torch.where(x < 0, -0.5, 0.5).double()
    k = (x * float.fromhex("0x1.71547652b82fep+0") + half).long()
    n = k.double()
    r = (x - n * float.fromhex("0x1.62e42fee00000p-1")) - n * float.fromhex("0x1.a39ef35793c76p-33")
    p = torch.full_like(r, float.fromhex(_EXPM1[0]))
    for c in _EXPM1[1:]:
        p = p * r + float.fromhex(c)
    return ((k + 1023) << 52).view(torch.float64) * (1.0 + (r + r * r * p))


def root(square: Tensor) -> Tensor:
    """The square root, correctly rounded, of what is not negative, infinite or not a number as well."""
    return torch.where(torch.isfinite(square), _root(square), square)


def over(a: Tensor, number: float) -> Tensor:
    """a / number: torch multiplies by the reciprocal of a number."""
    return a / torch.full_like(a, number)


def last_place(value: Tensor) -> Tensor:
    """The unit in the last place of positive normal float64."""
    return (value.view(torch.int64) & 0x7FF0000000000000).view(torch.float64) * 2.0**-52


def dense_weight(table: list[list[float]], facts: list[int], j: int, theta: Tensor) -> Tensor:
    """The weight of h k_j in the state at t + theta h, less x."""
    last, other = facts[STAGES], 1.0 - theta
    b, start, end = table[POINT + last][j], float(j == 0), float(j == last)
    w = torch.zeros_like(theta)
    for d in reversed(range(facts[DENSE_ROWS])):
        w = (w + table[DENSE + d][j]) * (theta if (3 + d) % 2 == 0 else other)
    w = (w + (2.0 * b - (start + end))) * theta
    w = (w + (start - b)) * other
    return (w + b) * theta


@dataclass
class _Call:
    """What all phases of one call share."""

    f: Tensor  # [P, N], the state's dtype, the sign applied
    x: Tensor
    y: Tensor
    t: Tensor
    k: Tensor
    clock: Tensor
    counts: Tensor
    rows: Tensor
    times: Tensor
    steps: Tensor | None
    table: list[list[float]]
    facts: list[int]
    norm: int
    max_nfe: int
    home: Tensor

    def column(self, name: str, samples: Tensor) -> Tensor:
        part = self.clock if name in CLOCK else self.counts
        return part[samples, (CLOCK if name in CLOCK else COUNTS).index(name)]

    def put(self, samples: Tensor, **values: Tensor | float | int) -> None:
        for name, value in values.items():
            part = self.clock if name in CLOCK else self.counts
            part[samples, (CLOCK if name in CLOCK else COUNTS).index(name)] = torch.as_tensor(
                value, dtype=part.dtype, device=part.device
            )

    def weighted(self, samples: Tensor, row: int) -> Tensor:
        """sum_j (h row_j) k_j in the state's dtype, over the weights that are not 0."""
        h = self.column("h", samples)
        total = torch.zeros_like(self.x[samples])
        for j, weight in enumerate(self.table[row]):
            if weight != 0.0:
                total = total + (h * weight).to(self.x.dtype)[:, None] * self.k[samples, j]
        return total

    def to_stage(self, places: Tensor, samples: Tensor, stage: int) -> None:
        """The point and the time of a stage."""
        self.y[places] = self.x[samples] + self.weighted(samples, POINT + stage)
        self.stage_time(places, samples, stage)

    def stage_time(self, places: Tensor, samples: Tensor, stage: int) -> None:
        c = self.table[TIME][stage]
        time = self.column("next", samples)
        if c != 1.0:
            time = self.column("t", samples) + c * self.column("h", samples)
        self.t[places] = time.to(self.t.dtype)
        self.put(samples, phase=stage)

    def scale(self, samples: Tensor, size: Tensor) -> Tensor:
        return self.column("atol", samples)[:, None] + self.column("rtol", samples)[:, None] * size

    def mean_square(self, value: Tensor, scale: Tensor) -> Tensor:
        """Of value / scale, each at most FAR; not finite where a value is not."""
        nothing = value - value
        near = torch.where((value / scale).abs() > FAR, FAR, (value / scale).abs())
        return over(ordered_sum(near * near + nothing), float(self.norm))

    def seen(self, value: Tensor) -> Tensor:
        """The elements that count in norms."""
        return value[:, : self.norm].double()

    # ------------------------------------------------------------------------------------------------ the first step
    def first(self, places: Tensor, samples: Tensor) -> None:
        self.k[samples, 0] = self.f[places]
        x, f = self.seen(self.x[samples]), self.seen(self.f[places])
        scale = self.scale(samples, x.abs())
        d0, d1 = root(self.mean_square(x, scale)), root(self.mean_square(f, scale))
        fine = torch.isfinite(d0) & torch.isfinite(d1)
        self.finish(samples[~fine], NON_FINITE)
        given = fine & (self.column("first", samples) > 0)
        self.start(places[given], samples[given], self.column("first", samples[given]))
        rest = fine & ~given
        places, samples, d0, d1 = places[rest], samples[rest], d0[rest], d1[rest]
        span = (self.times[-1] - self.times[0]).abs()
        first = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * (d0 / d1)).clamp(max=span)
        over = self.column("nfe", samples) + 1 > self.max_nfe
        self.finish(samples[over], BUDGET)
        places, samples, d1, first = places[~over], samples[~over], d1[~over], first[~over]
        h = torch.where(self.times[-1] > self.times[0], first, -first)
        self.put(samples, first=first, slope=d1, h=h)
        self.y[places] = self.x[samples] + (0.0 + h.to(self.x.dtype)[:, None] * self.k[samples, 0])
        self.t[places] = (self.column("t", samples) + h).to(self.t.dtype)
        self.put(samples, phase=PROBE)

    def probe(self, places: Tensor, samples: Tensor) -> None:
        f, before = self.seen(self.f[places]), self.seen(self.k[samples, 0])
        scale = self.scale(samples, self.seen(self.x[samples]).abs())
        first = self.column("first", samples)
        d2 = root(self.mean_square(f - before, scale)) / first
        d1 = self.column("slope", samples)
        largest = torch.where(d2 > d1, d2, d1)
        ratio = torch.clamp(torch.full_like(largest, 0.01) / largest, 1e-300, 1e300)
        usual = exact_exp(over(exact_log(ratio), float(self.facts[ORDER])))
        h = torch.where(largest <= 1e-15, torch.clamp(first * 1e-3, min=1e-6), usual)
        h = torch.where(h < 100.0 * first, h, 100.0 * first)
        self.start(places, samples, torch.where(torch.isfinite(d2), h, first))

    # ---------------------------------------------------------------------------------------------------- the steps
    def start(self, places: Tensor, samples: Tensor, size: Tensor) -> None:
        """Begins an attempt of a step of this size, or ends the sample."""
        t, end = self.column("t", samples), self.times[-1]
        forward = bool(end > self.times[0])
        span = (end - self.times[0]).abs()
        least = torch.clamp(torch.minimum(self.column("first", samples), span) / 1024.0, min=LEAST_NEAR)
        small = size < 16.0 * last_place(torch.maximum(t.abs(), least))
        flags = self.column("flags", samples)
        self.finish(samples[small & ((flags & NOT_FINITE_LAST) != 0)], NON_FINITE)
        self.finish(samples[small & ((flags & NOT_FINITE_LAST) == 0)], UNDERFLOW)
        over = ~small & (self.column("nfe", samples) + self.facts[STAGES] > self.max_nfe)
        self.finish(samples[over], BUDGET)
        go = ~small & ~over
        places, samples, size, t = places[go], samples[go], size[go], t[go]
        stop = t + (size if forward else -size)
        last = (size >= (end - t).abs()) | ~self.before(stop, end)
        stop = torch.where(last, end, stop)
        self.put(samples, next=stop, h=stop - t)
        self.to_stage(places, samples, 1)

    def finish(self, samples: Tensor, status: int) -> None:
        self.put(samples, status=status)

    def factor(self, error: Tensor, before: Tensor) -> Tensor:
        e = torch.clamp(error, min=LEAST_ERROR)
        power = over(0.4 * exact_log(before) - 0.7 * exact_log(e), float(self.facts[ORDER]))
        return torch.clamp(SAFETY * exact_exp(power), SHRINK, GROW)

    def reject(self, places: Tensor, samples: Tensor, error: Tensor) -> None:
        """After an error above 1, or one that is not finite."""
        finite = torch.isfinite(error)
        factor = self.factor(torch.where(finite, error, 1.0), self.column("error", samples))
        factor = torch.where(finite, factor, 0.2)
        self.put(samples, rejected=self.column("rejected", samples) + 1)
        self.put(samples, flags=torch.where(finite, 0, NOT_FINITE_LAST) + REJECTED_LAST)
        self.start(places, samples, self.column("h", samples).abs() * factor)

    def decide(self, places: Tensor, samples: Tensor) -> None:
        if self.facts[EXTRA]:
            self.to_stage(places, samples, self.facts[STAGES])
        ends = self.y[places]
        begins, ends = self.seen(self.x[samples]).abs(), self.seen(ends)
        scale = self.scale(samples, torch.where(begins > ends.abs(), begins, ends.abs()))
        nothing = ends - ends  # a state that is not finite has no error
        e5 = self.mean_square(self.seen(self.weighted(samples, ERROR)) + nothing, scale)
        if self.facts[TWO_ERRORS]:
            e3 = self.mean_square(self.seen(self.weighted(samples, ERROR3)) + nothing, scale)
            both = e5 + 0.01 * e3
            error = torch.where(both == 0, 0.0, e5 / root(both))
        else:
            error = root(e5)
        bad = ~(error <= 1.0)
        self.reject(places[bad], samples[bad], error[bad])
        places, samples, error = places[~bad], samples[~bad], error[~bad]
        self.put(samples, slope=error)
        if not self.facts[EXTRA]:
            self.accept(places, samples, self.y[places])

    def arrived(self, places: Tensor, samples: Tensor) -> None:
        """DOP853's evaluation at the end of a step that is good, if the field is finite there."""
        bad = ~torch.isfinite(ordered_sum(self.seen(self.f[places]) * 0.0))
        self.reject(places[bad], samples[bad], torch.full_like(self.column("h", samples[bad]), torch.nan))
        places, samples = places[~bad], samples[~bad]
        row = self.column("row", samples)
        inside = self.before(self.times[row], self.column("next", samples))
        over = inside & (self.column("nfe", samples) + self.facts[EXTRA] > self.max_nfe)
        self.finish(samples[over], BUDGET)
        dense, plain = inside & ~over, ~inside
        if bool(dense.any()):
            self.k[samples[dense], self.facts[STAGES] + 1 + self.facts[EXTRA]] = self.y[places[dense]]
            self.to_stage(places[dense], samples[dense], self.facts[STAGES] + 1)
        self.accept(places[plain], samples[plain], self.y[places[plain]])

    def before(self, a: Tensor, b: Tensor) -> Tensor:
        return a < b if bool(self.times[-1] > self.times[0]) else a > b

    def accept(self, places: Tensor, samples: Tensor, ends: Tensor) -> None:
        """Output rows, the new state, and the next step; ends is x at the step's end."""
        accepted = self.column("accepted", samples)
        if self.steps is not None:
            self.steps[samples, accepted, 0] = self.column("t", samples)
            self.steps[samples, accepted, 1] = self.column("next", samples)
        self.put(samples, accepted=accepted + 1)
        self.write_rows(samples, ends)
        self.x[samples] = ends
        self.k[samples, 0] = self.k[samples, self.facts[STAGES]]
        next_t, error = self.column("next", samples), self.column("slope", samples)
        factor = self.factor(error, self.column("error", samples))
        held = (self.column("flags", samples) & REJECTED_LAST) != 0
        factor = torch.where(held & (factor > 1.0), 1.0, factor)
        self.put(samples, t=next_t, error=torch.clamp(error, min=LEAST_BEFORE), flags=0)
        done = next_t == self.times[-1]
        self.finish(samples[done], SUCCESS)
        go = ~done
        self.start(places[go], samples[go], (self.column("h", samples).abs() * factor)[go])

    def write_rows(self, samples: Tensor, ends: Tensor) -> None:
        count = len(self.times)
        while True:
            row = self.column("row", samples)
            due = row < count
            due &= ~self.before(self.column("next", samples), self.times[torch.clamp(row, max=count - 1)])
            if not bool(due.any()):
                return
            samples, ends, row = samples[due], ends[due], row[due]
            theta = (self.times[row] - self.column("t", samples)) / self.column("h", samples)
            inside = self.times[row] != self.column("next", samples)
            self.rows[row, samples] = ends
            if bool(inside.any()):
                found = self.x[samples[inside]] + self.dense(samples[inside], theta[inside])
                self.rows[row[inside], samples[inside]] = found
            self.put(samples, row=row + 1)

    def dense(self, samples: Tensor, theta: Tensor) -> Tensor:
        """h sum_j w_j(theta) k_j: the state inside a step, less x. Hermite's cubic polynomial, and what the method adds."""
        last, h = self.facts[STAGES], self.column("h", samples)
        total = torch.zeros_like(self.x[samples])
        for j in range(last + 1 + self.facts[EXTRA]):
            w = dense_weight(self.table, self.facts, j, theta)
            term = (h * w).to(total.dtype)[:, None] * self.k[samples, j]
            total = torch.where((w == 0.0)[:, None], total, total + term)
        return total

    def phase(self, phase: int, places: Tensor) -> None:
        samples = self.home[places]
        self.put(samples, nfe=self.column("nfe", samples) + 1)
        stages, extra = self.facts[STAGES], self.facts[EXTRA]
        if phase > 0:
            self.k[samples, phase] = self.f[places]
        if phase == 0:
            self.first(places, samples)
        elif phase == PROBE:
            self.probe(places, samples)
        elif phase == self.facts[DECIDES]:
            self.decide(places, samples)
        elif phase == stages:
            self.arrived(places, samples)
        elif phase == stages + extra:
            self.accept(places, samples, self.k[samples, stages + 1 + extra])
        else:
            self.to_stage(places, samples, phase + 1)


def adaptive_(
    f: Tensor, x: Tensor, y: Tensor, inp: Tensor | None, t: Tensor, k: Tensor, clock: Tensor, counts: Tensor,
    rows: Tensor, running: Tensor, partial: Tensor, steps: Tensor | None, home: Tensor | None, times: Tensor, table: Tensor,
    norm_elements: int, max_nfe: int, sign: float,
) -> None:  # fmt: skip
    batch = len(x)
    places = torch.arange(len(y), device=x.device)
    written = (x, y, inp, t, k, clock, counts, rows, running, partial, steps)
    if any(
        one is not None and one.untyped_storage().data_ptr() == f.untyped_storage().data_ptr()
        for one in written
    ):
        f = f.clone()  # a field may return its own argument
    values = f.to(x.dtype).reshape(len(y), -1)
    call = _Call(
        values if sign == 1.0 else values * sign, x.view(batch, -1), y.view(len(y), -1), t, k.view(*k.shape[:2], -1),
        clock, counts, rows.view(len(rows), batch, -1), times, steps, table.tolist(), [int(v) for v in table[FACTS].tolist()],
        norm_elements, max_nfe, places if home is None else home,
    )  # fmt: skip
    status = counts[:, COUNTS.index("status")]
    live = status[call.home] == UNFINISHED
    phases = counts[call.home, COUNTS.index("phase")]
    for phase in phases[live].unique().tolist():
        call.phase(phase, places[live & (phases == phase)])
    running.copy_((status == UNFINISHED).sum())
    if inp is not None:
        inp.copy_(y)
