"""Records, samples and loads as frames of pandas, which is optional: pip install skep[pandas].

Durations are columns of milliseconds, whose names end in _ms, in the order in which phases happen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .answers import Bench, Load, Sample
from .models import Invocation, MemoryStats

if TYPE_CHECKING:
    import pandas

#: The phases of an invocation, in order; they add up to total.
PHASES = ("queue", "slot", "spawn", "load", "install", "resume", "boot", "clone", "init", "connect", "process", "stream")
PHASE_COLUMNS = [f"{p}_ms" for p in PHASES]


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as e:
        raise ImportError("frames want pandas: pip install skep[pandas]") from e
    return pandas


def _row(r: Invocation) -> dict[str, Any]:
    row: dict[str, Any] = {
        "time": r.time, "id": r.id, "function": r.function, "start": r.start, "status": r.status, "failure": r.failure,
        "policy": r.memory.policy if r.memory else None, "instance": r.instance, "snapshot": r.snapshot,
        "total_ms": r.phases.total_us / 1000,
    }  # fmt: skip
    for phase in PHASES:
        row[f"{phase}_ms"] = (getattr(r.phases, f"{phase}_us") or 0) / 1000
    row |= {"bytes_in": r.bytes_in, "bytes_out": r.bytes_out, "error": r.error}
    for field in dataclasses.fields(MemoryStats):
        if field.name == "policy":
            continue
        value = getattr(r.memory, field.name) if r.memory else None
        if field.name.endswith("_ns"):
            row[_column(field.name)] = None if value is None else value / 1e6
        else:
            row[field.name] = None if value == -1 else value  # -1: not known
    return row


def _frame(rows: list[dict[str, Any]], columns: list[str]) -> pandas.DataFrame:
    frame = _pandas().DataFrame(rows, columns=columns)
    frame["time"] = _pandas().to_datetime(frame["time"], utc=True)
    return frame  # type: ignore[no-any-return]


def _column(name: str) -> str:
    """The column of a field of MemoryStats: its times are not those of phases."""
    return f"memory_{name.removesuffix('_ns')}_ms" if name.endswith("_ns") else name


def _columns() -> list[str]:
    memory = [_column(f.name) for f in dataclasses.fields(MemoryStats) if f.name != "policy"]
    return [
        "time", "id", "function", "start", "status", "failure", "policy", "instance", "snapshot", "total_ms", *PHASE_COLUMNS,
        "bytes_in", "bytes_out", "error", *memory,
    ]  # fmt: skip


def records(of: Iterable[Invocation]) -> pandas.DataFrame:
    """A row for each record."""
    return _frame([_row(r) for r in of], _columns())


def samples(of: Iterable[Sample] | Bench) -> pandas.DataFrame:
    """A row for each sample: its run and variant, and its record's columns. What a benchmark says
    of the machine is the frame's attrs.
    """
    about = of.about if isinstance(of, Bench) else {}
    listed = of.samples if isinstance(of, Bench) else list(of)
    frame = _frame([{"run": s.run, "variant": s.variant, **_row(s.record)} for s in listed], ["run", "variant", *_columns()])
    frame.attrs.update(about)
    return frame


def load(of: Load) -> pandas.DataFrame:
    """A row for each call of a load, by when it was due; its report is the frame's attrs."""
    pandas = _pandas()
    functions = of.plan.get("functions", [])
    rows = [
        {
            "n": c["n"],
            "function": functions[c["function"]] if c["function"] < len(functions) else str(c["function"]),
            "due_ms": c["at_ns"] / 1e6,
            "late_ms": c["late_ns"] / 1e6,
            "latency_ms": c["latency_ns"] / 1e6,
            "took_ms": c["took_ns"] / 1e6,
            "status": c["status"],
            "start": c.get("start", ""),
        }
        for c in of.calls
    ]
    frame = pandas.DataFrame(rows, columns=["n", "function", "due_ms", "late_ms", "latency_ms", "took_ms", "status", "start"])
    frame = frame.sort_values("n", ignore_index=True)
    frame.attrs.update(of.report)
    return frame  # type: ignore[no-any-return]
