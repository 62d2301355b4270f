"""What is imported is the installed package, and no more of it than is used."""

import subprocess
import sys

import ghee_models


def test_the_installed_package_is_imported() -> None:
    assert ghee_models.__file__ is not None


def test_a_rank_that_trains_or_predicts_imports_no_mlflow() -> None:
    """About a second of processor time in each process, which only the driver and rank 0 of a tracked training need."""
    imported = "import sys, ghee_models.prediction, ghee_models.training, ghee_models.run; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", imported], capture_output=True, text=True, check=True).stdout.split()
    assert not {"mlflow", "matplotlib", "hydra"} & set(shown)
