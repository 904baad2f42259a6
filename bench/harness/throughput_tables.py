"""The tables that bench.throughput prints."""

from typing import Any

from rich.console import Console

from bench.engines import baseline
from bench.harness import results
from bench.harness.program import table

LETTERS = "abcdefghijklmnopqrstuvwxyz"

Row = dict[str, Any]


def show(content: dict[str, Any], console: Console) -> None:
    """Print every table for which the result has rows."""
    for preset in content["config"]["presets"]:
        _speeds([row for row in content["rows"] if (row["part"], row["preset"]) == ("interleaved", preset)], console)
    _scaling(content["rows"], content["scaling"], console)
    peaks = [f"{results.SHORT[name]} {peak / 1e9:,.0f}" for name, peak in content["gemm_peak"].items() if peak]
    if peaks:
        console.print(f"matrix products reached {', '.join(peaks)} GFLOP/s; MFU is of that, in the row's dtype")
    if content["noisy_machine"]:
        console.print("[bold]noisy machine[/bold]: turns of one variant differ by more than 15 %; trust ratios alone")
    if content["projection"]["shapes"]:
        _projection(content, console)
    _times(content["times_to_loss"], console)


def _speeds(rows: list[Row], console: Console) -> None:
    if not rows:
        return
    first = rows[0]
    title = f"{first['preset']}: {first['batch']} x {first['context']} characters a step, dropout {first['dropout']:g}"
    found = table(title, ["variant"], ["chars/s", "p20 - p80", "x baseline", "MFU", "MiB", "parameters"])
    found.add_column("differs")
    notes = list(dict.fromkeys(note for row in rows for note in row["differs"]))
    yardstick = next(row for row in rows if row["engine"] == "baseline")
    for row in rows:
        speed, times = row["chars_per_second"], results.ratio(row, yardstick)
        memory, count = row["peak_memory_bytes"], row.get("parameters")
        failed = "OOM" if row["error"] == "OOM" else "failed" if row["error"] else "not reached"
        found.add_row(
            results.label(row),
            f"{speed['p50']:,.0f}" if speed else failed,
            f"{speed['p20']:,.0f} - {speed['p80']:,.0f}" if speed else "",
            f"{times:.2f}" if times else "",
            f"{row['mfu']:.0%}" if row["mfu"] else "",
            f"{memory / 2**20:,.0f}" if memory else "",
            f"{count:,}" if count else "",
            " ".join(LETTERS[notes.index(note)] for note in row["differs"]),
        )
    console.print(found)
    for letter, note in zip(LETTERS, notes, strict=False):
        console.print(f"  {letter}: {note}", highlight=False)
    for row in rows:
        if row["error"]:
            console.print(f"  {results.label(row)}: {row['error']}", markup=False, highlight=False)
    columns = ["data", "forward", "backward", "optimizer", "evaluation of a batch"]
    found = table("where the time of a step goes, milliseconds", ["variant"], columns)
    for row in rows:
        if parts := row["parts"]:
            found.add_row(
                results.label(row), *("" if value is None else f"{1e3 * value:,.1f}" for value in parts.values())
            )
    console.print(found)


def _scaling(rows: list[Row], fits: list[dict[str, Any]], console: Console) -> None:
    if not fits:
        return
    found = table("growth of a character's cost", ["axis", "engine", "chars/s", "exponent"], [])
    for fit in fits:
        mine = [row for row in rows if (row["part"], row["engine"], row.get("axis")) == ("scaling", *_key(fit))]
        speeds = [f"{row['value']}: {row['chars_per_second']['p50']:,.0f}" for row in mine if row["chars_per_second"]]
        found.add_row(fit["axis"], fit["engine"], "  ".join(speeds), f"{fit['exponent']:+.2f}")
    console.print(found)


def _key(fit: dict[str, Any]) -> tuple[str, str]:
    return fit["engine"], fit["axis"]


def _projection(content: dict[str, Any], console: Console) -> None:
    title = "the baseline's whole job: 2 x 5,000 steps and their evaluations, minutes"
    found = table(title, ["shape", "where"], ["the baseline", "charformer", "ratio"])
    machine = content["machine"]
    here = machine["gpu"] if content["config"]["device"] == "cuda" else machine["cpu"]
    for shape in content["projection"]["shapes"]:
        theirs, ours = shape["baseline_minutes"], shape["charformer_minutes"]
        found.add_row(shape["preset"], f"{here}, projected", f"{theirs:,.0f}", f"{ours:,.1f}", f"{theirs / ours:.1f}")
        floor = shape["rtx3050_predicted_minutes"]
        published = f"{shape['rtx3050_published_minutes']} (published)"
        found.add_row("", "RTX 3050, predicted floor", published, f"{floor:.1f}", "")
    console.print(found)
    console.print("published: on the baseline's page, which does not state the shape; predicted: nothing ran there")


def _times(times: list[dict[str, Any]], console: Console) -> None:
    title = f"to the baseline's validation loss, {baseline.ITS_LOSS}, on this machine, projected"
    found = table(title, ["preset"], ["characters", "minutes"])
    for time in times:
        characters = time["characters"]
        found.add_row(
            f"{time['engine']} {time['preset']}",
            f"{characters:,.0f}" if characters else f"not reached: {time['best']:.3f} at best",
            f"{time['minutes']:,.1f}" if time["minutes"] else "",
        )
    console.print(found)
