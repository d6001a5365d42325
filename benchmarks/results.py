"""The result file: what it holds, writing it, and reading it back with its faults named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEMA = 1
FORMAT = "pyflowcore-benchmarks"

_HEADER: dict[str, type | tuple[type, ...]] = {
    "format": str,
    "schema": int,
    "date": str,
    "versions": dict,
    "device": dict,
    "cpu": str,
    "cores": int,
    "instruction_set": str,
    "threads": list,
    "commit": (str, type(None)),
    "info": dict,
    "options": dict,
    "rows": list,
    "skipped": list,
}
_ROW: dict[str, type | tuple[type, ...]] = {
    "benchmark": str,
    "case": str,
    "params": dict,
    "threads": int,
    "arm": str,
    "role": str,
    "heat": str,
    "clock": str,
    "seconds": dict,
    "bytes_read": int,
    "bytes_written": int,
    "operations": int,
    "rate": dict,
    "ceiling": (dict, type(None)),
    "ratios": dict,
}
_SECONDS: dict[str, type | tuple[type, ...]] = {
    "median": float,
    "p20": float,
    "p80": float,
    "samples": int,
    "repeat_medians": list,
    "noise": float,
}
# Of benchmarks whose slowest calls matter, beside the fields of every row.
_TAILS: dict[str, type | tuple[type, ...]] = {"p99": float, "p99.9": float, "wanted": int}
_SKIPPED: dict[str, type | tuple[type, ...]] = {
    "benchmark": str,
    "case": str,
    "threads": int,
    "arm": str,
    "reason": str,
}


def _check(where: str, record: object, fields: Mapping[str, type | tuple[type, ...]]) -> None:
    if not isinstance(record, dict):
        raise ValueError(f"{where} must be an object, got {type(record).__name__}")
    for name, kind in fields.items():
        if name not in record:
            raise ValueError(f"{where} has no field {name!r}")
        if not isinstance(record[name], kind) or (isinstance(record[name], bool) and kind is int):
            raise ValueError(f"{where}: field {name!r} is of type {type(record[name]).__name__}")
    unknown = sorted(set(record) - set(fields))
    if unknown:
        raise ValueError(f"{where} has unknown fields {unknown}")


def validate(result: object) -> dict[str, Any]:
    """``result`` itself. Raises ValueError that names the first field that is missing, unknown or of the wrong type."""
    _check("result", result, _HEADER)
    assert isinstance(result, dict)
    kind = (result["format"], result["schema"])
    if kind != (FORMAT, SCHEMA):
        raise ValueError(f"result has format and schema {kind}; known: {(FORMAT, SCHEMA)}")
    for i, row in enumerate(result["rows"]):
        with_tails = isinstance(row, dict) and "tails" in row
        _check(f"rows[{i}]", row, _ROW | ({"tails": dict} if with_tails else {}))
        if with_tails:
            _check(f"rows[{i}].tails", row["tails"], _TAILS)
        _check(f"rows[{i}].seconds", row["seconds"], _SECONDS)
        seconds = row["seconds"]
        if not 0 < seconds["p20"] <= seconds["median"] <= seconds["p80"]:
            raise ValueError(
                f"rows[{i}].seconds: p20 <= median <= p80 does not hold, or a time is not positive"
            )
    for i, skipped in enumerate(result["skipped"]):
        _check(f"skipped[{i}]", skipped, _SKIPPED)
    return result


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a checked result, whole or not at all."""
    text = json.dumps(validate(result), indent=1) + "\n"
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def read(path: Path) -> dict[str, Any]:
    """Read and check a result file. Raises ValueError that names the file and the fault."""
    try:
        return validate(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def row_key(row: Mapping[str, Any]) -> tuple[str, str, int, str]:
    """What makes two rows of different files the same measurement."""
    return row["benchmark"], row["case"], row["threads"], row["arm"]
