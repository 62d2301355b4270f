"""The package that is tested is the installed one, not a folder of the same name."""

import ghee_models


def test_the_installed_package_is_imported() -> None:
    assert ghee_models.__file__ is not None
