"""One engine in a process of its own, which answers requests: python -m bench.harness.worker MODULE OPTIONS.

MODULE has a function ``handler`` that takes OPTIONS, a JSON object, as keyword arguments and returns what answers a
request. Each line of stdin is a request, its words separated by spaces; each line of stdout is the JSON answer. An
error is the last answer: {"error": "OOM"} for want of memory, or what went wrong in one line.

This file needs nothing but Python: it also runs in the peers' environment.
"""

import importlib
import json
import os
import signal
import sys


def main() -> None:
    """Build the engine, then answer each line of stdin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the bench answers a Ctrl-C, and ends its workers
    module, options = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what an engine prints, or a process that it starts
    try:
        handle = importlib.import_module(module).handler(**json.loads(options))
        for line in sys.stdin:
            print(json.dumps(handle(*line.split())), file=answers, flush=True)
    except Exception as error:
        print(json.dumps({"error": in_short(error)}), file=answers, flush=True)


def in_short(error: Exception) -> str:
    """Return "OOM" for want of memory, or what went wrong in one line of at most 300 characters."""
    text = str(error).strip()
    if type(error).__name__ in ("MemoryError", "OutOfMemoryError") or "allocate memory" in text:
        return "OOM"
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"[:300]


if __name__ == "__main__":
    main()
