"""Train a model on a text, sample from it, and score a sentence.

python examples/quick_start.py novel.txt 400          # a text and the number of steps
"""

import sys

import charformer


def main(text: str, steps: int) -> None:
    """Train on the file ``text`` for ``steps`` steps, into runs/ and its name."""
    run = charformer.train(text, steps=steps, overwrite=True, on_step=report)
    print(f"validation {run.val_loss:.3f} nats a character; the run is in {run.out}")
    model = charformer.load(run.out)
    for piece in model.stream("\n", max_new_tokens=300, temperature=0.8, seed=1):
        print(piece, end="", flush=True)
    print()
    print(f"{model.score('the end').bits:.2f} bits a character for 'the end'")


def report(progress: "charformer.Progress") -> None:
    """Print the losses of each evaluation."""
    if progress.evaluation:
        print(f"step {progress.step}: validation {progress.evaluation.val_loss:.3f}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 400)
