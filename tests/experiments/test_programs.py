"""The demos' and benchmarks' command lines: what is wrong with one is said in one line, with exit status 2."""

import pytest

from experiments.benchmarks import audit_cost, bench
from experiments.demos import distributed, repaired_checkpoint, restore_demo


@pytest.fixture
def complaint(capsys, monkeypatch):
    """Runs a program that must refuse its command line; what it says."""
    monkeypatch.delenv("TF_CONFIG", raising=False)

    def of(program, *arguments) -> str:
        assert program.main([str(argument) for argument in arguments]) == 2
        written = capsys.readouterr().err
        assert written.startswith(f"{program.__name__.rpartition('.')[2]}: ") and written.count("\n") == 1
        return written

    return of


@pytest.mark.parametrize(
    ("program", "arguments", "says"),
    [
        (audit_cost, ["--fulll"], "--fulll"),
        (audit_cost, ["--full", "3"], "3"),
        (audit_cost, ["--output"], "--output"),
        (bench, ["--threads", "0"], "got '0'"),
        (bench, ["--threads", "many"], "got 'many'"),
        (bench, ["--slow"], "--slow"),
        (distributed, ["--workers", "0"], "a whole number from 1 up, got '0'"),
        (repaired_checkpoint, ["--steps", "0"], "a whole number from 1 up, got '0'"),
        (repaired_checkpoint, ["--steps", "many"], "got 'many'"),
        (repaired_checkpoint, ["--seed", "-1"], "--seed"),
        (repaired_checkpoint, ["--data", "cifar"], "cifar"),
        (repaired_checkpoint, ["--stepps", "3"], "--stepps"),
        (restore_demo, ["--checkpoint", "nowhere/model"], "run make single-example first"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else getattr(value, "__name__", "").rpartition(".")[2],
)
def test_a_wrong_argument(program, arguments, says, complaint):
    assert says in complaint(program, *arguments)


@pytest.mark.parametrize("program", [audit_cost, repaired_checkpoint], ids=lambda program: program.__name__)
def test_an_output_that_is_a_file(program, complaint, tmp_path):
    (tmp_path / "taken").write_text("")
    assert "taken" in complaint(program, "--output", tmp_path / "taken")
