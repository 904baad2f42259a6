"""charformer-export: write a run's model as a .onnx file, checked against its checkpoint."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from charformer.api import DEFAULT_PRECISION
from charformer.commands.common import Parser, choose_run, execute, logs_to, nonempty
from charformer.runs.folder import WEIGHTS
from charformer.sampling.onnx_format import PRECISIONS
from charformer.ui.console import PlainConsole, progress_bar

EXAMPLES = """\
examples:
  charformer-export                            the newest run under runs/ in 8 bits, to its model.onnx
  charformer-export --precision fp32           the same numbers as the checkpoint's
  charformer-export --precision fp16           for an NVIDIA GPU
  charformer-export --portable --out web.onnx  standard operators alone, for another runtime
  charformer-export --html novel.html          and one page that samples it in any browser, without a network
"""


def main(argv: list[str] | None = None) -> int:
    return execute(build_parser(), argv, _run)


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser("charformer-export", "Write a run's model as one .onnx file, which is enough to sample.", EXAMPLES)
    parser.add_argument(
        "--run",
        type=nonempty,
        metavar="DIR",
        help="the run to export (default: the one under runs/ that was written last)",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        default="best",
        help="weights that were best on validation, or that the training saved last (default: best)",
    )
    parser.add_argument("--out", type=nonempty, metavar="FILE", help="where to write (default: model.onnx in the run)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=DEFAULT_PRECISION,
        help="precision of the weights; fp16 is for CUDA (default: %(default)s)",
    )
    parser.add_argument(
        "--portable",
        action="store_true",
        help="use only standard ONNX operators; slower (for onnxruntime-web, see docs/onnx.md)",
    )
    parser.add_argument(
        "--html",
        type=nonempty,
        metavar="FILE",
        help="write a page as well, one file that holds the model and samples it in a browser",
    )
    parser.add_argument(
        "--data",
        type=nonempty,
        metavar="FILE|NAME",
        help="the text to check the file on and, for a model without an n-gram prior, to make the draft of speculation "
        "from (default: the run's own)",
    )
    parser.add_argument("--json", action="store_true", help="make the last line of stdout one JSON document")
    return parser


def _run(args: argparse.Namespace) -> int:
    console = PlainConsole()
    with logs_to(console):
        run = choose_run(args.run)
    out = run.onnx if args.out is None else Path(args.out)
    page = None if args.html is None else Path(args.html)
    if page is not None:
        from export.html import check_page

        check_page(page, out, args.precision, args.portable)
    from export.exporter import check_out, export, find_text  # importing onnx takes a while

    check_out(out, run)
    precision = args.precision
    with logs_to(console):
        with progress_bar(console) as on_progress:
            corpus = find_text(run, args.data, on_progress)
        done = export(run, out, precision, args.portable, corpus, args.weights)
    found = done.comparison
    size = f"{done.bytes / 1e6:,.2f} MB"
    console.print(f"{out}: {precision}{', portable' if args.portable else ''}, {size}")
    console.print(f"checked on {found.characters:,} {done.text}:")
    console.print(f"  largest error of a logit  {found.max_logit_error:.1e}")
    console.print(f"  KL divergence             {found.kl:.1e} nats a character")
    if corpus is not None:
        console.print(
            f"  validation loss           {found.loss:.4f} ({round(found.loss - found.checkpoint_loss, 4) + 0:+.4f})"
        )
    console.print(f"  speed                     {found.chars_per_second:,.0f} characters/s, one text")
    if page is not None:
        from export.html import write_page

        written = write_page(run, done, page)
        console.print(
            f"{page}: {written.bytes / 1e6:,.2f} MB, of which model and table {written.model_bytes / 1e6:,.2f} MB and "
            f"ONNX Runtime Web {written.runtime_bytes / 1e6:,.2f} MB"
        )
    if args.json:
        values = {"run": str(run.path)} | asdict(done) | asdict(found) | {"path": str(out)}
        del values["comparison"]
        if page is not None:
            values["html"] = asdict(written) | {"path": str(page)}
        print(json.dumps(values))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
