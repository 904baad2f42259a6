"""Run one engine in a process of its own, which answers requests: python -m bench.harness.worker MODULE OPTIONS.

MODULE has a function ``handler`` that takes OPTIONS, a JSON object, as keyword arguments, and returns a function that
answers a request. Each line of stdin is a request, whose words are separated by spaces; each line of stdout is the
answer as JSON. An error is the last answer: {"error": "OOM"} if memory ran out, or one line with the reason.

This file needs nothing but Python, since it also runs in the peers' environment.
"""

import importlib
import json
import os
import signal
import sys


def main() -> None:
    """Build the engine, then answer each line of stdin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the bench handles Ctrl-C and ends its workers
    module, options = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # discards what an engine, or a process that it starts, prints
    try:
        handle = importlib.import_module(module).handler(**json.loads(options))
        for line in sys.stdin:
            print(json.dumps(handle(*line.split())), file=answers, flush=True)
    except Exception as error:
        print(json.dumps({"error": in_short(error)}), file=answers, flush=True)


def in_short(error: Exception) -> str:
    """Return "OOM" if memory ran out, or the error in one line of at most 300 characters."""
    text = str(error).strip()
    if type(error).__name__ in ("MemoryError", "OutOfMemoryError") or "allocate memory" in text:
        return "OOM"
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"[:300]


if __name__ == "__main__":
    main()
