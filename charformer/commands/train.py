"""charformer-train: pretrain on a text, or fine-tune a pretrained run on another."""

import argparse

from charformer.commands.common import execute
from charformer.commands.train_arguments import build_parser, check
from charformer.training.distributed import ProcessLostError, connected_world


def main(argv: list[str] | None = None) -> int:
    return execute(build_parser(), argv, _run)


def _run(args: argparse.Namespace) -> int:
    with connected_world() as world:
        try:
            world.main_first(lambda: check(args, world))
            from charformer.threads import LoadProbe  # psutil is not needed to sample, and may be missing

            load = LoadProbe()
            from charformer.commands.train_run import run_training  # PyTorch takes seconds: report mistakes first

            return run_training(args, world, load)
        except ProcessLostError:
            if world.is_main:
                raise
            return 2  # the main process has reported why


if __name__ == "__main__":
    raise SystemExit(main())
