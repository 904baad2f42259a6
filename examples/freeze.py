"""Fine-tune a run on a second text, once in full and once with its attention frozen, and compare the two.

python examples/freeze.py runs/novel letters.txt 200  # a run, a text and the number of steps
"""

import sys
from pathlib import Path

import charformer


def main(source: str, text: str, steps: int) -> None:
    """Fine-tune the run in ``source`` on ``text`` twice, into folders beside it."""
    for name, freeze in (("full", None), ("attention-frozen", "attention")):
        out = Path(source).with_name(f"{Path(source).name}-{name}")
        run = charformer.train(text, out=out, init_from=source, freeze=freeze, steps=steps, overwrite=True)
        print(f"{name}: validation {run.val_loss:.3f} after {run.seconds:.0f} s of training")
        print(charformer.load(out).generate("\n", max_new_tokens=100, seed=1))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 200)
