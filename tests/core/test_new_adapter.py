"""What `python -m solstice.new_adapter` writes; `nox -s stranger` shows that its tests pass."""

import subprocess
import sys

import pytest

from solstice.new_adapter import write_package


def run(*arguments):
    command = [sys.executable, "-m", "solstice.new_adapter", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_package_bears_the_name_everywhere(tmp_path):
    result = run("my_net", "--folder", tmp_path)
    assert result.returncode == 0, result.stderr
    package = tmp_path / "solstice-my-net"
    assert f"wrote {package}" in result.stdout
    names = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    assert {"pyproject.toml", "README.md", "tests/test_conformance.py"} < names
    assert "src/solstice_my_net/_model.py" in names
    text = "".join(path.read_text() for path in package.rglob("*") if path.is_file())
    assert "toynet" not in text.lower()
    assert '"solstice_my_net._net" = "solstice_my_net:MyNetModel"' in text


def test_what_is_there_is_not_overwritten(tmp_path):
    package = write_package("mine", tmp_path)
    (package / "README.md").write_text("my own words")
    result = run("mine", "--folder", tmp_path)
    assert result.returncode == 1
    assert "exists already" in result.stderr
    assert (package / "README.md").read_text() == "my own words"


@pytest.mark.parametrize("name", ["", "My-Net", "1net", "../net"])
def test_a_name_that_is_none_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="lower-case letters"):
        write_package(name, tmp_path)
    assert list(tmp_path.iterdir()) == []
