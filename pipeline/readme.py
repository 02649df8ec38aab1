"""Writes the generated parts of README.md: run as a module, with --check to only compare."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pipeline.catalog import FAST, SLICE, SLOW, UNITS, Metric

README: Final = Path(__file__).parent.parent / "README.md"
BEGIN: Final = "<!-- metrics: written by `python -m pipeline.readme`, do not edit -->"
END: Final = "<!-- end of metrics -->"


def metric_table() -> str:
    """Every metric with its unit's precision, kind, NVML source and dcgm-exporter's names."""
    lines = [
        "| metric | kind | step | from NVML | dcgm-exporter up to 4.8 | from 4.9 | what it is |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, metrics in (
        ("every tick", FAST), ("every minute, and what changed (`gpu_health`)", SLOW), ("MIG instances", SLICE),
    ):  # fmt: skip
        lines.append(f"| **{title}** | | | | | | |")
        lines += [_line(metric) for metric in metrics]
    return "\n".join(lines)


def _line(metric: Metric) -> str:
    step = f"{1 / metric.scale:g} {UNITS[metric.unit]}" if metric.unit else "1"
    old, new = (f"`{d.name}`" if d else "" for d in (metric.dcgm, metric.dcgm49))
    cells = (f"`{metric.name}`", metric.kind, step, metric.nvml, old, new, metric.meaning)
    return "| " + " | ".join(cells) + " |"


def rendered(text: str) -> str:
    """README's text with its generated part made anew."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"README.md has lost the line {BEGIN}"
    assert end, f"README.md has lost the line {END}"
    return f"{before}{BEGIN}\n{metric_table()}\n{END}{after}"


def main(arguments: Sequence[str]) -> int:
    """Write, or with --check say whether it is up to date."""
    text = README.read_text()
    made = rendered(text)
    if "--check" in arguments:
        if made != text:
            print("README.md: the metric table is out of date, run `python -m pipeline.readme`")
        return int(made != text)
    README.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
