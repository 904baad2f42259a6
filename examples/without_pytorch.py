"""Answer prompts with a .onnx file inside a program that never imports PyTorch.

charformer-export --run runs/novel --out novel.onnx
python examples/without_pytorch.py novel.onnx "Once upon a time"
"""

import sys

import charformer


def main(file: str, prompts: list[str]) -> None:
    """Continue each prompt with the model in ``file``."""
    model = charformer.load(file)
    for prompt in prompts:
        print(prompt + model.generate(prompt, max_new_tokens=200, temperature=0.7, stop="\n\n", seed=7))
    assert "torch" not in sys.modules


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] or ["\n"])
