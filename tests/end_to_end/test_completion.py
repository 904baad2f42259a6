"""Test the script of charformer completion in bash itself."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import shtab

from charformer.commands import completion
from charformer.commands import main as front

BASH = shutil.which("bash")


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert front.main(["completion", "bash"]) == 0
    path = tmp_path / "completion.bash"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    return path


def completed(script: Path, line: str) -> list[str]:
    """Return what bash offers for the last word of ``line``, in the folder of ``script``."""
    assert BASH is not None
    words = line.split(" ")
    code = f"""
        source {script.name}
        COMP_WORDS=({" ".join(map(shlex.quote, words))}) COMP_CWORD={len(words) - 1} COMP_LINE={shlex.quote(line)}
        COMP_POINT=${{#COMP_LINE}}
        complete -p {words[0]} | grep -o -- '-F [^ ]*' | cut -c4- > name
        "$(cat name)" {words[0]} {shlex.quote(words[-1])} {shlex.quote(words[-2])}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    shown = subprocess.run(
        [BASH, "--norc", "-c", code], cwd=script.parent, capture_output=True, text=True, timeout=60, check=True
    )
    assert shown.stderr == ""
    return sorted(shown.stdout.split())


@pytest.mark.skipif(BASH is None, reason="no bash")
def test_bash_completes_commands_flags_choices_and_files(script: Path) -> None:
    (script.parent / "novel.txt").touch()
    (script.parent / "runs").mkdir()
    (script.parent / "runs.txt").touch()
    for front_or_not in ("charformer-train", "charformer train"):
        assert completed(script, f"{front_or_not} --preset ba") == ["baseline", "baseline-as-coded"]
        assert completed(script, f"{front_or_not} nov") == ["novel.txt"]
        assert completed(script, f"{front_or_not} --init-from r") == ["runs"]  # but not the file
        assert completed(script, f"{front_or_not} --over") == ["--overwrite"]
    assert completed(script, "charformer-sample --weights ") == ["best", "last"]
    assert completed(script, "charformer-export --html nov") == ["novel.txt"]
    assert completed(script, "charformer com") == ["completion"]
    assert completed(script, "charformer --v") == ["--version"]


@pytest.mark.parametrize("shell", ["zsh", "fish", "tcsh"])
def test_other_shells_get_a_script_for_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert completion.main([shell]) == 0
    script = capsys.readouterr().out
    assert {"charformer", "charformer-train", "charformer-sample", "charformer-export"} <= set(
        re.findall(r"charformer(?:-[a-z]+)?", script)
    )


def test_every_shell_is_one_that_shtab_knows() -> None:
    assert list(completion.SHELLS) == shtab.SUPPORTED_SHELLS


def test_an_unknown_shell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        front.main(["completion", "cmd.exe"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
