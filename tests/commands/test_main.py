"""The command line itself: which module is imported when, and how it ends when something is wrong."""

import os
import subprocess
import sys
import types

import pytest

from bn_graph.__main__ import main
from bn_graph.audit.report import AuditError
from bn_graph.commands import CommandError

COMMANDS = ("audit", "recalibrate", "inference-graph")


@pytest.fixture
def command(monkeypatch):
    """Puts a command in the place of recalibrate that does what it is given."""

    def put(run):
        module = types.ModuleType("recalibrate")
        module.add_arguments = lambda parser: parser.add_argument("--seed", type=int)
        module.run = run
        monkeypatch.setitem(sys.modules, "bn_graph.commands.recalibrate", module)

    return put


def raises(error):
    def run(arguments):
        raise error

    return run


def run_python(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, **options)


def test_help_lists_every_command_on_one_line_each(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0
    for name in COMMANDS:
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert len(line.split()) > 3 and len(line) <= 80


def test_the_status_of_the_command_is_returned(command):
    command(lambda arguments: arguments.seed)
    assert main(["recalibrate", "--seed", "7"]) == 7


@pytest.mark.parametrize("argv", [[], ["adit"], ["--bogus"], ["--bogus", "audit"], ["recalibrate", "--seed", "x"]])
def test_wrong_arguments_are_one_line_and_status_2(argv, command, capsys):
    command(lambda arguments: 0)
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1 and err.startswith("bn_graph") and "usage" not in err


@pytest.mark.parametrize(
    "error",
    [CommandError("no such\nthing"), AuditError("no such thing"), FileNotFoundError(2, "no such thing", "model.meta")],
)
def test_what_the_user_can_repair_is_one_line_and_status_2(error, command, capsys):
    command(raises(error))
    assert main(["recalibrate"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and err.startswith("bn_graph recalibrate: ") and "no such thing" in err


def test_an_error_of_the_file_system_names_the_file(command, capsys):
    command(raises(PermissionError(13, "Permission denied", "out/model.meta")))
    assert main(["recalibrate"]) == 2
    assert capsys.readouterr().err == "bn_graph recalibrate: out/model.meta: Permission denied\n"


def test_an_error_may_have_another_status(command, capsys):
    command(raises(CommandError("not so", status=1)))
    assert main(["recalibrate"]) == 1
    assert capsys.readouterr().err == "bn_graph recalibrate: not so\n"


@pytest.mark.parametrize("words, line", [((), "stopped."), (("out is complete",), "stopped; out is complete.")])
def test_ctrl_c_is_status_130_and_one_line_that_says_what_is_left(words, line, command, capsys):
    command(raises(KeyboardInterrupt(*words)))
    assert main(["recalibrate"]) == 130
    assert capsys.readouterr().err == f"bn_graph recalibrate: {line}\n"


def test_a_bug_is_not_hidden(command):
    command(raises(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["recalibrate"])


def test_a_closed_pipe_is_no_traceback():
    # Nobody ever reads the pipe: its reading end is closed before the command starts to write.
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "bn_graph", "audit", "--explain", "BN001"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        )
    assert (done.returncode, done.stderr) == (141, "")


def test_without_stdout_the_status_is_all_there_is():
    done = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m bn_graph audit no-such-file.meta >&-"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


def test_a_terminal_of_few_signs_is_no_traceback():
    done = run_python("-m", "bn_graph", "audit", "--explain", "BN001", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "tensorflow\\u4e2d\\u7684batchnorm" in done.stdout  # the document's title


@pytest.mark.parametrize("argv", [["--help"], ["audit", "--help"], ["audit", "--explain", "BN001"]])
def test_the_audit_never_imports_tensorflow(argv):
    program = (
        "import sys\nfrom bn_graph.__main__ import main\n"
        f"try:\n    main({argv!r})\nexcept SystemExit:\n    pass\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'tensorflow', 'keras', 'tf_keras'}))"
    )
    done = run_python("-c", program)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "[]"
