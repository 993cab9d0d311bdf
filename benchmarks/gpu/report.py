"""What the figures come to: shares of the machine's own speed, ratios, a table for people."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from benchmarks.gpu.roofline import Rates, floor_s, itl_floor_s, shared_prefix
from benchmarks.gpu.shape import Shape
from benchmarks.gpu.workload import Workload

MIN_PEER_RATIO: Final = 1.3
MIN_ROOFLINE_SHARE: Final = 0.4
MAX_ITL_RATIO: Final = 1.5
MIN_PRODUCT_RATIO: Final = 0.95
MAIN: Final = "nano-vllm"
SINGLE: Final = "1 stream"

_PARTS: Final = (
    "roofline", "tests", "attention", "micro", "ours", "nano_vllm", "transformers", "product",
)  # fmt: skip

Figures = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """is_met: None where it was not measured, or is not claimed."""

    what: str
    is_met: bool | None
    found: str


def floors(
    workloads: Mapping[str, Workload], *, shape: Shape, rates: Rates
) -> dict[str, dict[str, float]]:
    """Return by workload how large it is, and the most tokens a second that the machine allows."""
    found = {}
    for name, workload in workloads.items():
        least_s = floor_s(
            workload.jobs, shape=shape, rates=rates, n_shared=shared_prefix(workload.jobs)
        )
        found[name] = {
            "n_sequences": len(workload.jobs),
            "n_prompt_tokens": workload.n_prompt_tokens,
            "n_new_tokens": workload.n_new_tokens,
            "floor_s": round(least_s, 6),
            "roofline_tokens_per_s": round(workload.n_new_tokens / least_s, 1),
        }
    found[SINGLE]["itl_floor_ms"] = round(itl_floor_s(shape, rates=rates) * 1e3, 4)
    return found


def rates_of(result: Figures) -> Rates | None:
    found = result.get("roofline", {}).get("rates")
    return Rates(**found) if found else None


def derive(result: Figures) -> dict[str, dict[str, float]]:
    """Return by workload our share of the roofline and our ratio to each peer."""
    derived: dict[str, dict[str, float]] = {}
    ours = result.get("ours", {})
    for name, floor in result.get("workloads", {}).items():
        figures: dict[str, float] = {}
        if rate := _rate(ours, name):
            figures["roofline_share"] = round(rate / floor["roofline_tokens_per_s"], 3)
            for peer in ("nano_vllm", "transformers"):
                if peer_rate := _rate(result.get(peer, {}), name):
                    figures[f"ratio_to_{peer}"] = round(rate / peer_rate, 2)
            if "itl_floor_ms" in floor:
                figures["itl_ratio"] = round(ours[name]["itl_ms"] / floor["itl_floor_ms"], 2)
        derived[name] = figures
    return derived


def verdicts(result: Figures, derived: Mapping[str, Mapping[str, float]]) -> list[Verdict]:
    """Return what the figures say of each thing that must be shown."""
    found = []
    if "tests" in result:
        tests = result["tests"]
        said = f"{tests.get('passed', 0)} passed, {tests.get('failed_tests', 0)} failed"
        found.append(
            Verdict(
                what="GPU tests pass", is_met="failed" not in tests, found=tests.get("failed", said)
            )
        )
    main, single = derived.get(MAIN, {}), derived.get(SINGLE, {})
    if (share := main.get("roofline_share")) is not None:
        found.append(
            Verdict(
                what=f"at least {MIN_ROOFLINE_SHARE:.0%} of the roofline on nano-vllm's workload",
                is_met=share >= MIN_ROOFLINE_SHARE,
                found=f"{share:.1%}",
            )
        )
    if (ratio := main.get("ratio_to_nano_vllm")) is not None:
        attention = result["nano_vllm"].get("attention", {})
        is_theirs = bool(attention.get("is_flash_attn"))
        through = attention.get("attention", "unknown attention")
        found.append(
            Verdict(
                what=f"at least {MIN_PEER_RATIO} x nano-vllm on its own workload",
                is_met=ratio >= MIN_PEER_RATIO if is_theirs else None,
                found=f"{ratio:.2f} x, nano-vllm through {through}"
                + ("" if is_theirs else ": a stand-in, so not claimed"),
            )
        )
    if (itl_ratio := single.get("itl_ratio")) is not None:
        found.append(
            Verdict(
                what=f"a single stream's ITL within {MAX_ITL_RATIO} x of reading the weights",
                is_met=itl_ratio <= MAX_ITL_RATIO,
                found=f"{itl_ratio:.2f} x",
            )
        )
    if (ratio := result.get("product", {}).get("ratio")) is not None:
        rates = result["product"]["tokens_per_s"]
        found.append(
            Verdict(
                what=f"the product gives at least {MIN_PRODUCT_RATIO:.0%} of what its engine does",
                is_met=ratio >= MIN_PRODUCT_RATIO,
                found=f"{ratio:.1%}: {rates['http']:,.0f} of {rates['socket']:,.0f} tokens/s",
            )
        )
    return found


def as_dicts(found: list[Verdict]) -> list[dict[str, Any]]:
    return [asdict(verdict) for verdict in found]


def table(result: Figures) -> str:
    """Return the result as lines for a terminal."""
    lines = [_machine_line(result)]
    if result.get("workloads"):
        head = ("workload", "ours tok/s", "roofline", "ITL ms", "nano-vllm", "x", "transf.", "x")
        lines.append(_row(head))
        lines += [_workload_row(name, result) for name in result["workloads"]]
    lines += _attention_lines(result.get("attention", {}).get("chosen"))
    for name in _PARTS:
        if fault := result.get(name, {}).get("failed"):
            lines.append(f"FAILED {name}: {fault}")
        elif reason := result.get(name, {}).get("left_out"):
            lines.append(f"left out {name}: {reason}")
        lines += [
            f"left out {name}, {workload}: {reason}"
            for workload in result.get("workloads", ())
            if (reason := result.get(name, {}).get(workload, {}).get("left_out"))
        ]
    marks = {True: "met", False: "NOT MET", None: "not claimed"}
    lines += [
        f"{marks[verdict['is_met']]}: {verdict['what']}: {verdict['found']}"
        for verdict in result.get("verdicts", ())
    ]
    return "\n".join(lines)


def _attention_lines(chosen: Figures | None) -> list[str]:
    """Return what attends in each phase and what each candidate takes, and what is not used."""
    if chosen is None:
        return []
    lines = []
    for phase in ("decode", "prefill"):
        times = chosen["times_us"].get(phase, {})
        said = ", ".join(f"{name} {time_us:,.1f} us" for name, time_us in times.items())
        found = said or "no library is here to compare with"
        lines.append(f"attention chosen to {phase}: {chosen[phase]} ({found})")
    return lines + [f"not used: {name}: {why}" for name, why in chosen["refused"].items()]


def _machine_line(result: Figures) -> str:
    roofline = result.get("roofline", {})
    machine = roofline.get("machine", {})
    said = [str(machine.get("device", "unknown device")), f"torch {machine.get('torch', '?')}"]
    if rates := rates_of(result):
        said += [
            f"copy {rates.copy_bytes_per_s / 1e12:.2f} TB/s",
            f"read {rates.read_bytes_per_s / 1e12:.2f} TB/s",
            f"matrix {rates.flop_per_s / 1e12:.0f} TFLOP/s",
        ]
    return ", ".join([*said, f"model {result.get('model', '?')}, random weights"])


def _workload_row(name: str, result: Figures) -> str:
    derived = result["derived"].get(name, {})
    ours = result.get("ours", {}).get(name, {})
    share = derived.get("roofline_share")
    return _row(
        (
            name,
            _number(_rate(result.get("ours", {}), name), "{:,.0f}"),
            _number(share, "{:.0%}"),
            _number(ours.get("itl_ms"), "{:.2f}"),
            _number(_rate(result.get("nano_vllm", {}), name), "{:,.0f}"),
            _number(derived.get("ratio_to_nano_vllm"), "{:.2f}"),
            _number(_rate(result.get("transformers", {}), name), "{:,.0f}"),
            _number(derived.get("ratio_to_transformers"), "{:.2f}"),
        )
    )


def _row(cells: tuple[str, ...]) -> str:
    return f"{cells[0]:<14}" + "".join(f"{cell:>12}" for cell in cells[1:])


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _rate(figures: Figures, name: str) -> float | None:
    rate: float | None = figures.get(name, {}).get("tokens_per_s")
    return rate
