"""The copy of ONNX Runtime Web in a page: two files of the npm package, as published.

To update: change the three hashes and VERSION, run ``python -m export.runtime onnxruntime-web-VERSION.tgz`` (from
``npm pack onnxruntime-web@VERSION``) to write the files, and run tests/browser to see whether the page still works.
"""

import hashlib
import lzma
import sys
import tarfile
from pathlib import Path

VERSION = "1.30.0"
PACKAGE_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
SCRIPT = "ort.wasm.bundle.min.mjs"
WASM = "ort-wasm-simd-threaded.wasm"
SHA256 = {
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
FOLDER = Path(__file__).with_name("page") / "onnxruntime-web"


def read(name: str) -> bytes:
    """Return the content of SCRIPT or WASM. Raises ValueError if it is not as published on npm."""
    content = lzma.decompress((FOLDER / f"{name}.xz").read_bytes())
    _check(content, SHA256[name], name)
    return content


def unpack(package: Path) -> None:
    """Store the two files of an npm package. Raises ValueError if the package or a file does not match its hash."""
    _check(package.read_bytes(), PACKAGE_SHA256, str(package))
    with tarfile.open(package) as archive:
        for name, sha256 in SHA256.items():
            file = archive.extractfile(f"package/dist/{name}")
            assert file is not None, "a file of the package that the hash is of"
            content = file.read()
            _check(content, sha256, name)
            (FOLDER / f"{name}.xz").write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))


def _check(content: bytes, sha256: str, name: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"{name} has the SHA-256 {found}, not {sha256}")


if __name__ == "__main__":
    unpack(Path(sys.argv[1]))
