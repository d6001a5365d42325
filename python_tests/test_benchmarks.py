"""The benchmark harness: registry, options, statistics, verdicts, files. The clock is a fake, nothing is timed."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest

sys.path.append(str(Path(__file__).parents[1]))  # last: an installed pyflowcore goes before the source folder

from benchmarks import compare, memory, registry, report, results, run, timing
from benchmarks.__main__ import main
from benchmarks.options import Options, parse_size, parse_sizes, parse_threads, show_size
from benchmarks.registry import Arm, Built, Case, Entry
from benchmarks.summary import quantile, summarise


class FakeClock:
    """Says that an arm takes the seconds given for its name, a little more in every odd block."""

    def __init__(self, seconds: dict[str, float], jitter: float = 0.0) -> None:
        self.seconds, self.jitter = seconds, jitter
        self.blocks: list[tuple[str, int, int, bool]] = []

    def block(self, arm: Arm, first: int, count: int, warm: bool) -> float:
        for k in range(count):
            arm.calls[(first + k) % len(arm.calls)]()
        self.blocks.append((arm.name, first, count, warm))
        return self.seconds[arm.name] * (1 + self.jitter * (len(self.blocks) % 2))


SECONDS = {"fused": 1e-3, "eager": 4e-3, "copy": 0.8e-3, "streaming copy": 0.9e-3}


def make_entry(calls: list[str]) -> Entry:
    def cases(options: Options) -> Iterator[Case]:
        def build() -> Built:
            calls.append("build")
            arms = [
                Arm("fused", "candidate", [lambda: calls.append("fused")]),
                Arm("eager", "baseline", [lambda: None, lambda: None], 2),
                Arm("copy", "ceiling", [lambda: None]),
                Arm("streaming copy", "ceiling", [lambda: None]),
            ]
            return Built(arms, {"peer": "not installed"}, lambda: calls.append("check"))

        for n in options.choose_sizes((1000, 2000), (1 << 26,)):
            yield Case(f"case {n}", {"n": n}, 8 * n, 4 * n, 2 * n, "hot", build)

    return Entry("fake", "a summary", "12 n bytes", ("eager",), cases)


def run_fake(options: Options | None = None, seconds: dict[str, float] | None = None) -> dict[str, object]:
    return run.run(
        [make_entry([])],
        [options or Options(threads=1)],
        show=lambda rows, skipped: None,
        clock_for=lambda kind, device: FakeClock(seconds or SECONDS),
    )


# ------------------------------------------------------------ registry and options


def test_every_benchmark_states_its_least_work_and_its_baselines() -> None:
    entries = registry.load()
    assert {
        "ceilings",
        "combine",
        "guide",
        "randn",
        "interpolate",
        "dispatch",
        "sampler_vs_diffusers",
        "engine",
        "solve",
        "log_prob",
    } <= set(entries)
    for entry in entries.values():
        assert entry.summary and entry.least
        assert entry.baselines or entry.name == "ceilings"


def test_every_case_states_its_work_without_being_built() -> None:
    for entry in registry.load().values():
        cases = list(entry.cases(Options(threads=1)))
        assert cases
        assert len({case.name for case in cases}) == len(cases)
        for case in cases:
            # What an adaptive solve takes is known when it has run; overhead has no work of its own.
            assert case.footprint > 0 or case.operations > 0 or entry.name in ("dispatch", "solve")
            assert case.heat in ("hot", "streamed", "rotated")


def test_sizes_reach_the_cases() -> None:
    entry = registry.load()["combine"]
    assert {case.params["n"] for case in entry.cases(Options(threads=1, sizes=(4096, 5000)))} == {4096, 5000}


def test_euler_with_guidance_needs_five_streams_or_six() -> None:
    cases = {
        case.name: case for case in registry.load()["combine"].cases(Options(threads=1, sizes=(1 << 20,)))
    }
    case = cases["euler, CFG, 1M elements, float32/float32"]
    assert (case.bytes_read, case.bytes_written) == (12 << 20, 8 << 20)
    case = cases["euler, CFG, input apart, 1M elements, float32/float32"]
    assert (case.bytes_read, case.bytes_written) == (12 << 20, 12 << 20)
    case = cases["euler, CFG, 1M elements, float32/bfloat16"]
    assert (case.bytes_read, case.bytes_written) == (8 << 20, 8 << 20)


def test_a_name_is_registered_once() -> None:
    def cases(options: Options) -> Iterator[Case]:
        yield from ()

    registry.load()
    with pytest.raises(ValueError, match="'combine' is already"):
        registry.benchmark("combine", summary="s", least="l", baselines=())(cases)
    with pytest.raises(ValueError, match="must state a summary and its least"):
        registry.benchmark("another", summary="s", least=" ", baselines=())
    with pytest.raises(ValueError, match="identifier"):
        registry.benchmark("not a name", summary="s", least="l", baselines=())


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"among ceilings, combine.*got nothing_such"):
        registry.find(["combine", "nothing_such"])
    assert [entry.name for entry in registry.find(["all"])] == list(registry.load())


@pytest.mark.parametrize(
    ("text", "n"), [("4K", 4096), ("4k", 4096), ("1M", 1 << 20), ("1000", 1000), ("1G", 1 << 30)]
)
def test_sizes_are_read_and_written(text: str, n: int) -> None:
    assert parse_size(text) == n
    assert parse_size(show_size(n)) == n


@pytest.mark.parametrize("text", ["", "0", "-1", "4KB", "1.5M", "4K,", "x"])
def test_bad_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_sizes(text)


def test_bad_options_are_refused() -> None:
    assert parse_threads("1,2") == (1, 2)
    for text in ("0", "one", "1,,2", "-1"):
        with pytest.raises(ValueError, match="threads"):
            parse_threads(text)
    for field, value in (("device", "tpu"), ("threads", 0), ("budget", 0.0), ("repeats", 1)):
        with pytest.raises(ValueError, match=field):
            Options(**{field: value})  # type: ignore[arg-type]


def test_bad_arms_are_refused() -> None:
    with pytest.raises(ValueError, match="role"):
        Arm("a", "winner", [lambda: None])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="calls"):
        Arm("a", "candidate", [])
    with pytest.raises(ValueError, match="per_call"):
        Arm("a", "candidate", [lambda: None], 0)


def test_operations_of_an_arm_are_for_ceilings() -> None:
    with pytest.raises(ValueError, match="for a ceiling alone"):
        Arm("a", "baseline", [lambda: None], operations=7)


def test_heat_follows_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "cache_bytes", lambda device: 1000)
    assert memory.sets_for(1000, "cpu") == ("hot", 1)
    assert memory.sets_for(1500, "cpu") == ("rotated", 2)
    assert memory.sets_for(2000, "cpu") == ("streamed", 1)
    assert memory.sets_for(500, "cuda") == ("rotated", 8)
    assert memory.sets_for(10, "cuda") == ("hot", 1)
    assert memory.sets_for(4000, "cuda") == ("streamed", 1)


# ------------------------------------------------------------ statistics


def test_quantiles_are_numpys() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 8.0, 3.0]
    for q in (0.0, 0.2, 0.5, 0.8, 1.0):
        assert quantile(values, q) == pytest.approx(numpy.quantile(values, q))
    with pytest.raises(ValueError, match="values"):
        quantile([], 0.5)
    with pytest.raises(ValueError, match="q must"):
        quantile([1.0], 1.5)


def test_noise_is_the_spread_of_the_repeats_medians() -> None:
    summary = summarise([[1.0, 1.0, 1.0], [1.1, 1.2, 1.3], [0.9, 0.8, 0.9]])
    assert summary.repeat_medians == (1.0, 1.2, 0.9)
    assert summary.noise == pytest.approx(1.2 / 0.9)
    assert summary.samples == 9
    assert summary.median == 1.0
    with pytest.raises(ValueError, match="positive and finite"):
        summarise([[1.0], [float("nan")]])


def test_every_round_times_every_arm_once() -> None:
    clock = FakeClock(SECONDS)
    arms = make_entry([]).cases(Options(threads=1)).__next__().build().arms
    samples = timing.measure(arms, clock, budget=0.1, hot=True)
    rounds = len(samples["fused"])
    assert rounds >= timing.MIN_ROUNDS
    assert all(len(times) == rounds for times in samples.values())
    timed = [name for name, *_ in clock.blocks][4 * len(arms) :]
    for i in range(rounds):
        assert sorted(timed[len(arms) * i : len(arms) * (i + 1)]) == sorted(SECONDS)
    assert len({tuple(timed[len(arms) * i : len(arms) * (i + 1)]) for i in range(rounds)}) > 1, (
        "never shuffled"
    )
    assert samples["eager"][0] == pytest.approx(SECONDS["eager"] / 2), "per_call divides"


def test_short_calls_are_timed_several_at_a_time_and_sets_are_rotated() -> None:
    used: list[int] = []
    arm = Arm("short", "candidate", [lambda k=k: used.append(k) for k in range(3)])  # type: ignore[misc]
    clock = FakeClock({"short": 1e-5})
    timing.measure([arm], clock, budget=1e-9, hot=False)
    assert {count for _, _, count, _ in clock.blocks[4:]} == {20}
    assert not any(warm for *_, warm in clock.blocks[4:])
    firsts = [first for _, first, _, _ in clock.blocks[4:]]
    assert firsts == list(range(0, 20 * len(firsts), 20)), "each block goes on with the set after the last"
    with pytest.raises(ValueError, match="different names"):
        timing.measure([arm, arm], clock, budget=1.0, hot=False)


def test_long_calls_are_warmed_once_and_made_seldom() -> None:
    clock = FakeClock({"long": 2.0, "short": 1e-3})
    arms = [Arm(name, "candidate", [lambda: None]) for name in clock.seconds]
    samples = timing.measure(arms, clock, budget=0.1, hot=True)
    assert {name: len(times) for name, times in samples.items()} == dict.fromkeys(
        clock.seconds, timing.LONG_MIN_ROUNDS
    )
    long = [(count, warm) for name, _, count, warm in clock.blocks if name == "long"]
    assert long == [(1, False)] * (2 + timing.LONG_MIN_ROUNDS)
    assert any(warm for name, _, _, warm in clock.blocks if name == "short")


def test_every_call_by_itself_where_tails_matter() -> None:
    clock = FakeClock({"policy": 1e-5, "product": 1e-3})
    arms = [Arm("policy", "candidate", [lambda: None] * 3), Arm("product", "ceiling", [lambda: None])]
    samples = timing.measure(arms, clock, budget=10.0, hot=True, runs=500)
    assert len(samples["policy"]) == 500 and len(samples["product"]) == 500 // timing.CEILING_ROUNDS
    counted = [(first, count, warm) for name, first, count, warm in clock.blocks if name == "policy"][4:]
    assert counted == [(k, 1, False) for k in range(500)]
    few = timing.measure(arms, clock, budget=20 * (1e-5 + 1e-4), hot=True, runs=500)
    assert len(few["policy"]) == 20


def test_tails_are_said_and_so_is_a_lack_of_runs(tmp_path: Path) -> None:
    class Slow(FakeClock):
        def block(self, arm: Arm, first: int, count: int, warm: bool) -> float:
            super().block(arm, first, count, warm)
            return 5e-3 if len(self.blocks) % 50 == 0 else 1e-3

    def cases(options: Options) -> Iterator[Case]:
        build = lambda: Built([Arm("policy", "candidate", [lambda: None])])  # noqa: E731
        yield Case("case", {}, 0, 0, 6000, "hot", build, runs=2000)

    entry = Entry("fake", "a summary", "6000 operations", (), cases)

    def shown(budget: float) -> tuple[dict[str, object], str]:
        result = run.run(
            [entry],
            [Options(threads=1, budget=budget, repeats=2)],
            show=lambda rows, skipped: None,
            clock_for=lambda kind, device: Slow({"policy": 1e-3}),
        )
        results.write(tmp_path / "tails.json", result)
        row = results.read(tmp_path / "tails.json")["rows"][0]
        return row, report.show_rows([row], [])

    row, text = shown(10.0)
    assert row["seconds"]["samples"] == 2000 and row["tails"]["wanted"] == 2000  # type: ignore[index]
    assert row["tails"]["p99"] == 5e-3 and row["tails"]["p99.9"] == 5e-3  # type: ignore[index]
    assert "p99 5.0 ms, p99.9 5.0 ms of 2000 calls" in text and "budget" not in text
    row, text = shown(0.1)
    assert row["seconds"]["samples"] == 200  # type: ignore[index]
    assert "of 200 calls (of 2000 wanted: the budget allows no more)" in text


def run_arms(arms: list[Arm], seconds: dict[str, float], **built: object) -> dict[str, dict[str, object]]:
    """The rows of one case of 6000 operations and these arms, by arm."""

    def cases(options: Options) -> Iterator[Case]:
        yield Case("case", {}, 0, 0, 6000, "hot", lambda: Built(arms, **built))  # type: ignore[arg-type]

    entry = Entry("fake", "a summary", "6000 operations", (), cases)
    rows, _ = run.run_entry(entry, Options(threads=1), clock_for=lambda *_: FakeClock(seconds))
    return {row["arm"]: row for row in rows}


def test_a_ceiling_of_other_work_is_a_rate() -> None:
    arms = [
        Arm("fused", "candidate", [lambda: None]),
        Arm("eager", "baseline", [lambda: None]),
        Arm("product", "ceiling", [lambda: None], operations=1000),
    ]
    rows = run_arms(arms, {"fused": 8e-3, "eager": 24e-3, "product": 1e-3})
    assert rows["product"]["rate"]["value"] == pytest.approx(1e6 * 1e-9)  # type: ignore[index]
    assert rows["fused"]["rate"]["value"] == pytest.approx(0.75e6 * 1e-9)  # type: ignore[index]
    assert rows["fused"]["ceiling"] == {"arm": "product", "seconds": 6e-3, "share": pytest.approx(0.75)}
    assert rows["eager"]["ceiling"]["share"] == pytest.approx(0.25)  # type: ignore[index]
    assert rows["fused"]["ratios"] == {"eager": pytest.approx(3.0)}
    assert rows["product"]["ratios"] == {}, "times of different work have no ratio"


def test_operations_may_be_known_once_built() -> None:
    arms = [
        Arm("fused", "candidate", [lambda: None]),
        Arm("product", "ceiling", [lambda: None], operations=1000),
    ]
    rows = run_arms(arms, {"fused": 8e-3, "product": 1e-3}, operations=2000)
    assert rows["fused"]["operations"] == 2000
    assert rows["fused"]["ceiling"]["share"] == pytest.approx(0.25)  # type: ignore[index]


def test_what_an_arm_takes_beyond_another() -> None:
    arms = [
        Arm("solver", "candidate", [lambda: None], 10, less="field"),
        Arm("quick", "candidate", [lambda: None], less="field"),
        Arm("field", "baseline", [lambda: None]),
    ]
    rows = run_arms(arms, {"solver": 5e-3, "quick": 1e-5, "field": 2e-4})
    assert rows["solver"]["seconds"]["median"] == pytest.approx(3e-4)  # type: ignore[index]
    assert rows["quick"]["seconds"]["median"] == pytest.approx(1e-9)  # type: ignore[index]
    assert rows["field"]["seconds"]["median"] == pytest.approx(2e-4)  # type: ignore[index]


def test_what_is_subtracted_cannot_be_left_out() -> None:
    def cases(options: Options) -> Iterator[Case]:
        arms = [Arm("a", "candidate", [lambda: None], less="b"), Arm("b", "baseline", [lambda: None])]
        yield Case("case", {}, 0, 0, 0, "hot", lambda: Built(arms))

    rows, skipped = run.run_entry(
        Entry("fake", "a summary", "none", (), cases),
        Options(threads=1, without=("b",)),
        clock_for=lambda *_: FakeClock({"a": 2e-3, "b": 1e-3}),
    )
    assert [row["arm"] for row in rows] == ["a", "b"] and not skipped


# ------------------------------------------------------------ small fields and their loops


def seconds(median: float, spread: float = 0.02, noise: float = 1.05) -> dict[str, float]:
    return {"median": median, "p20": median * (1 - spread), "p80": median * (1 + spread), "noise": noise}


@pytest.mark.parametrize(
    ("a", "b", "word"),
    [
        (seconds(1.0), seconds(0.5), "faster, 2.00"),
        (seconds(1.0), seconds(2.0), "slower, 2.00"),
        (seconds(1.0), seconds(1.0), compare.NO_DIFFERENCE),
        # The intervals are apart, but repeating alone makes as large a ratio, in A or in B.
        (seconds(1.0, noise=1.3), seconds(0.8), compare.NO_DIFFERENCE),
        (seconds(1.0), seconds(1.25, noise=1.3), compare.NO_DIFFERENCE),
        # The ratio passes the noise, but the intervals overlap.
        (seconds(1.0, spread=0.3), seconds(0.7, spread=0.3), compare.NO_DIFFERENCE),
        (seconds(1.0, spread=0.3), seconds(1.4, spread=0.3), compare.NO_DIFFERENCE),
    ],
)
def test_verdicts_count_the_noise(a: dict[str, float], b: dict[str, float], word: str) -> None:
    assert compare.judge(a, b).text.startswith(word)


def test_verdicts_are_symmetric() -> None:
    a, b = seconds(1.0, noise=1.1), seconds(1.5, noise=1.2)
    there, back = compare.judge(a, b), compare.judge(b, a)
    assert there.text.startswith("slower") and back.text.startswith("faster")
    assert there.ratio == pytest.approx(1 / back.ratio)
    assert there.noise == back.noise == 1.2


def test_comparison_of_files() -> None:
    a = run_fake()
    b = run_fake(seconds={**SECONDS, "fused": 0.5e-3})
    text = compare.compare(a, b)
    assert "faster, 2.00 times" in text
    assert "2 faster, 0 slower, 6 no difference" in text
    assert "differ in more than the code" not in text
    other = copy.deepcopy(b)
    other["instruction_set"] = "another"
    other["rows"] = other["rows"][:4]  # type: ignore[index]
    text = compare.compare(a, other)
    assert "differ in more than the code" in text and "against another" in text
    assert "only in A: 4 rows" in text


# ------------------------------------------------------------ result files


def test_rows_hold_what_the_columns_need() -> None:
    result = run_fake()
    rows = {row["arm"]: row for row in result["rows"] if row["case"] == "case 1000"}  # type: ignore[attr-defined,index]
    fused, eager = rows["fused"], rows["eager"]
    assert fused["rate"] == {"value": pytest.approx(12000 / 1e-3 * 1e-9), "unit": "GB/s"}
    assert fused["ceiling"]["arm"] == "copy", "of the ceilings the fastest counts"
    assert fused["ceiling"]["share"] == pytest.approx(0.8)
    assert fused["ratios"]["eager"] == pytest.approx(2.0)
    assert eager["ratios"]["candidate"] == pytest.approx(2.0)
    assert rows["copy"]["ceiling"] is None
    assert result["skipped"][0] == {  # type: ignore[index]
        "benchmark": "fake",
        "case": "case 1000",
        "threads": 1,
        "arm": "peer",
        "reason": "not installed",
    }


def test_each_repeat_builds_anew_and_checks_once() -> None:
    calls: list[str] = []
    run.run_entry(
        make_entry(calls),
        Options(threads=1, repeats=3, only="case 1000"),
        clock_for=lambda *_: FakeClock(SECONDS),
    )
    assert calls.count("build") == 3
    assert calls.count("check") == 1
    assert calls.index("check") < calls.index("fused")


def test_a_baseline_can_be_left_out() -> None:
    result = run_fake(Options(threads=1, without=("eager",)))
    assert not any(row["arm"] == "eager" for row in result["rows"])  # type: ignore[attr-defined]
    assert any(skip["reason"] == "left out by --without" for skip in result["skipped"])  # type: ignore[attr-defined]


def test_files_are_written_whole_and_read_back(tmp_path: Path) -> None:
    result = run_fake()
    path = tmp_path / "result.json"
    results.write(path, result)
    assert results.read(path) == json.loads(json.dumps(result))
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
    for name in ("versions", "device", "instruction_set", "threads", "commit", "date", "rows"):
        assert name in json.loads(path.read_text())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: r.pop("commit"), "no field 'commit'"),
        (lambda r: r.update(extra=1), "unknown fields"),
        (lambda r: r.update(schema=2), "known: .*1"),
        (lambda r: r["rows"][1].pop("seconds"), r"rows\[1\] has no field 'seconds'"),
        (lambda r: r["rows"][0].update(threads="1"), "'threads' is of type str"),
        (lambda r: r["rows"][0]["seconds"].update(p20=9.0), "p20 <= median"),
        (lambda r: r["rows"][0].update(tails={"p99": 1.0}), r"rows\[0\].tails has no field 'p99.9'"),
        (lambda r: r["skipped"][0].pop("reason"), "no field 'reason'"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage: object, message: str) -> None:
    result = json.loads(json.dumps(run_fake()))
    damage(result)  # type: ignore[operator]
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(result))
    with pytest.raises(ValueError, match=message) as caught:
        results.read(path)
    assert "damaged.json" in str(caught.value)


def test_the_table_names_everything_it_ought_to() -> None:
    result = run_fake()
    text = report.show_rows(result["rows"], result["skipped"])  # type: ignore[arg-type]
    for word in (
        "fake: case 1000, 1 thread, hot",
        "0.008 MB read",
        "1.0 ms",
        "GB/s",
        "80%",
        "skipped: not installed",
    ):
        assert word in text


# ------------------------------------------------------------ command line


def test_the_command_line_lists_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "sampler_vs_diffusers" in capsys.readouterr().out
    assert main(["run", "nothing_such"]) == 2
    assert "NAME must be" in capsys.readouterr().err
    assert main(["run", "combine", "--sizes", "many"]) == 2
    assert "size must be" in capsys.readouterr().err
    assert main(["run", "combine", "--json", str(tmp_path / "no" / "file.json")]) == 2
    assert "json names" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "absent"), str(tmp_path / "absent")]) == 2
    assert "absent" in capsys.readouterr().err


def test_the_command_line_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in paths:
        results.write(path, run_fake())
    assert main(["compare", *map(str, paths)]) == 0
    assert "0 faster, 0 slower, 8 no difference" in capsys.readouterr().out
