"""Runs a function on many items in processes, where a crash fails only the item that caused it."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, TypeVar

Item = TypeVar("Item")


class Failed(NamedTuple):
    """The outcome of an item that has no result."""

    reason: str


class FatalError(Exception):
    """Raised by a function after whose failure its process cannot continue, such as a GPU fault."""


def run_each(
    function: Callable[[Item], Any], items: Sequence[Item], processes: int
) -> Iterator[tuple[Item, Any | Failed]]:
    """Yield each item with the result of ``function``, or with its failure, in the order of completion.

    Processes are spawned, so ``function`` and the items must be importable and small. An exception fails its item; so
    does the end of the process, which is then replaced.
    """
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(range(len(items))))
    workers: dict[Connection, tuple[Any, int]] = {}  # the process and the number of its item

    def start() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, function), daemon=True)
        process.start()
        theirs.close()
        _hand_out(ours, process)

    def _hand_out(connection: Connection, process: Any) -> None:
        if waiting:
            number = waiting.pop()
            workers[connection] = process, number
            connection.send(items[number])
        else:
            connection.close()
            process.join()

    try:
        for _ in range(min(processes, len(items))):
            start()
        while workers:
            for ready in wait(list(workers)):
                connection = ready if isinstance(ready, Connection) else None
                assert connection is not None
                process, number = workers.pop(connection)
                try:
                    result, alive = connection.recv()
                except EOFError:
                    process.join()
                    result, alive = Failed(f"its process ended with exit code {process.exitcode}"), False
                if alive:
                    _hand_out(connection, process)
                elif waiting:
                    start()
                yield items[number], result
    finally:
        for process, _ in workers.values():
            process.kill()


def _work(connection: Connection, function: Callable[[Any], Any]) -> None:
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            result, alive = function(item), True
        except FatalError as error:
            result, alive = Failed(str(error)), False
        except Exception as error:
            result, alive = Failed(f"{type(error).__name__}: {error}".strip().partition("\n")[0]), True
        connection.send((result, alive))
        if not alive:
            return
