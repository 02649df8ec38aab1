"""Rows as an aligned table for people."""

from collections.abc import Sequence


def render(names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest value, numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max([len(n), *(len(r[i]) for r in cells)]) for i, n in enumerate(names)]
    right = [bool(rows) and all(_is_number(r[i]) for r in rows) for i in range(len(names))]

    def line(values: Sequence[str]) -> str:
        padded = [
            v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(list(names)), *map(line, cells)])


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if isinstance(value, float) else str(value)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
