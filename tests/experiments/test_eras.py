import pytest

from experiments.machinery import eras

# A Python 3.6 that makes environments of itself, whose pip writes down its arguments, and that has TensorFlow 1.0.1.
FAKE = """#!/bin/sh
case "$*" in
  "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  "-m pip "*) echo "$@" >> "$(dirname "$0")/installed" ;;
  *tensorflow*) echo 1.0.1 ;;
  *sys*) echo 3.6 ;;
esac
"""


@pytest.fixture
def python36(tmp_path, monkeypatch):
    """The only Python 3.6 of this machine, on the PATH; there is no 3.7."""
    path = tmp_path / "bin" / "python3.6"
    path.parent.mkdir()
    path.write_text(FAKE)
    path.chmod(0o755)
    for name in ("PYTHON36", "PYTHON37"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    return path


def test_an_interpreter_is_found_on_the_path_in_pyenv_and_where_the_variable_says(python36, tmp_path, monkeypatch):
    assert eras.find_python("3.6") == python36
    in_pyenv = tmp_path / "pyenv" / "versions" / "3.6.15" / "bin" / "python"
    in_pyenv.parent.mkdir(parents=True)
    python36.rename(in_pyenv)
    assert eras.find_python("3.6") == in_pyenv
    monkeypatch.setenv("PYTHON36", "/no/such/python")
    with pytest.raises(eras.EnvironmentFailed, match=r"PYTHON36=/no/such/python is not a Python 3\.6"):
        eras.find_python("3.6")
    with pytest.raises(eras.EnvironmentFailed, match=r"no Python 3\.7 .* PYTHON37=/path"):
        eras.find_python("3.7")


def test_what_cannot_be_made_is_reported_and_the_others_are_made(python36, tmp_path, capsys):
    assert eras.main(["1.15.5", "1.4.1", "1.0.1", "--folder", str(tmp_path / "eras")]) == 1
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert "1.15.5" in lines[0] and "cannot be made: there is no Python 3.7" in lines[0]
    assert "1.4.1" in lines[1] and "installed TensorFlow 1.0.1 in place of 1.4.1" in lines[1]
    assert "1.0.1" in lines[2] and str(tmp_path / "eras" / "1.0.1" / "bin" / "python") in lines[2]
    assert printed.err == "eras: without 1.15.5, 1.4.1; what compares with them is left out\n"
    made = {version: eras.environment_python(version, tmp_path / "eras") is not None for version in eras.ERAS}
    assert made == {"1.0.1": True, "1.4.1": False, "1.8.0": False, "1.12.3": False, "1.15.5": False}


def test_a_finished_environment_is_kept_and_an_unfinished_one_is_made_anew(python36, tmp_path):
    folder = tmp_path / "eras" / "1.0.1"
    installed = folder / "bin" / "installed"
    for calls in (2, 2):  # pip itself, and the packages; the second time nothing
        eras.make_environment(folder, eras.ERAS["1.0.1"])
        assert len(installed.read_text().splitlines()) == calls
    assert "tensorflow==1.0.1 protobuf<3.20 numpy<1.17" in installed.read_text()
    (folder / "finished").unlink()
    (folder / "left over").touch()
    eras.make_environment(folder, eras.ERAS["1.0.1"])
    assert not (folder / "left over").exists() and len(installed.read_text().splitlines()) == 2


def test_an_unknown_version_is_refused(capsys):
    assert eras.main(["1.99"]) == 2
    assert "no recipe for TensorFlow 1.99; there are: 1.0.1" in capsys.readouterr().err
