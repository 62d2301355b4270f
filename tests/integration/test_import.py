"""All four packages install side by side."""

import cumin
import ghee
import ghee_models
import swimmy


def test_all_packages_import_together() -> None:
    assert all(package.__file__ is not None for package in (cumin, ghee, ghee_models, swimmy))
