"""What `assay plan` prints: a row for each stage, and the sums."""

import json
from collections.abc import Mapping
from typing import Any

import click

from pipeline.progress import count_text, seconds_text
from pipeline.terminal import bytes_text, show, table


def print_estimate(estimate: Mapping[str, Any], is_json: bool) -> None:
    """Prints what a run would compute, reuse and cost: a row per stage, and the sums."""
    if is_json:
        click.echo(json.dumps(estimate))
        return
    columns = {
        "stage": "stage",
        "tasks": "tasks to do",
        "reused": "reused",
        "seconds": "time",
        "reasons": "because",
        "forward_rows": "forward rows",
        "backward_rows": "backward rows",
        "flops": "FLOPs",
        "written_bytes": "written",
        "memory_bytes": "memory/task",
        "how": "how",
    }
    most = "at most " if any(row["at_most"] for row in estimate["stages"]) else ""
    shown = []
    for row in estimate["stages"]:
        cells = dict(row)
        cells["tasks"] = f"at most {row['tasks']}" if row["at_most"] else row["tasks"]
        cells["flops"] = f"{row['flops']:.1e}" if row["flops"] else ""
        cells["written_bytes"] = bytes_text(row["written_bytes"])
        cells["memory_bytes"] = bytes_text(row["memory_bytes"])
        cells["seconds"] = seconds_text(row["seconds"])
        cells["reasons"] = _reasons(row["reasons"])
        shown.append([cells[name] for name in columns])
    show(
        f"{count_text(estimate['examples'], 'example')}, "
        f"{count_text(estimate['queries'], 'query', 'queries')}, "
        f"{count_text(estimate['rejected'], 'rejected row')}, "
        f"{count_text(estimate['shards'], 'shard')}"
    )
    show(table(list(columns.values()), shown))
    if added := [f"{i} for {', '.join(by)}" for i, by in estimate["added"].items()]:
        show(f"Stages added because others read their tables: {'; '.join(added)}")
    for note in estimate["notes"]:
        show(note)
    show(
        f"In all {most}about {seconds_text(estimate['seconds'])} on "
        f"{count_text(estimate['workers'], 'worker')} "
        f"({_speed(estimate)} FLOP/s each, measured now), "
        f"{bytes_text(estimate['written_bytes']) or 'nothing'} to write, "
        f"{bytes_text(estimate['memory_bytes']) or 'next to nothing'} of memory for the largest "
        "task"
        if any(row["tasks"] for row in estimate["stages"])
        else "Nothing is left to compute"
    )


def _speed(estimate: Mapping[str, Any]) -> str:
    speed, other = estimate["flops_per_second"], estimate["bfloat16_flops_per_second"]
    return f"{speed:.1e}" if other is None else f"{speed:.1e}, in bfloat16 {other:.1e}"


def print_forecast(forecast: Mapping[str, Any], is_json: bool) -> None:
    """Prints what a run would take on a cluster: a row per stage, sums, and what is assumed."""
    if is_json:
        click.echo(json.dumps(forecast))
        return
    columns = {
        "stage": "stage",
        "tasks": "tasks",
        "workers": "at once",
        "flops": "FLOPs",
        "read_bytes": "read",
        "written_bytes": "written",
        "requests": "requests",
        "memory_bytes": "memory/task",
        "seconds": "time",
        "limit": "limited by",
        "how": "how",
    }
    shown = []
    for row in forecast["stages"]:
        cells = {name: f"{row[name]:,}" for name in ("tasks", "workers", "requests")}
        cells |= {name: bytes_text(row[name]) for name in columns if name.endswith("_bytes")}
        cells["flops"] = f"{row['flops']:.1e}" if row["flops"] else ""
        cells["seconds"] = seconds_text(row["seconds"])
        shown.append([{**row, **cells}[name] for name in columns])
    gpus = f" and {forecast['gpus']} GPUs" if forecast["gpus"] else ""
    show(
        f"{forecast['examples']:,} examples, {forecast['queries']:,} queries, "
        f"{forecast['tokens']:,} tokens, {forecast['shards']:,} shards, on {forecast['nodes']} "
        f"nodes of {forecast['cores']} cores{gpus}"
    )
    show(table(list(columns.values()), shown))
    for note in forecast["notes"]:
        show(note)
    chain = forecast["chain"]
    show(
        f"In all {seconds_text(forecast['seconds'])}, one stage after the other "
        f"({forecast['node_hours']:,.0f} node hours); the longest chain of stages that wait for "
        f"each other is {' > '.join(chain['stages'])} with {seconds_text(chain['seconds'])}"
    )
    show(
        f"{forecast['tasks']:,} tasks, {bytes_text(forecast['read_bytes'])} read, "
        f"{bytes_text(forecast['written_bytes'])} written, {forecast['requests']:,} requests, "
        f"{bytes_text(forecast['memory_bytes'])} of memory for the largest task"
    )
    assumed = ", ".join(f"{name}={value:.3g}" for name, value in forecast["assumed"].items())
    show(f"Assumed, each to be set by --assume: {assumed}")


def _reasons(counts: Mapping[str, int]) -> str:
    """Reasons in one cell, with the number of tasks of each where there are several."""
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{reason}: {n}" for reason, n in counts.items())
