"""The package that is tested is the installed one, not a folder of the same name."""

import swimmy


def test_the_installed_package_is_imported() -> None:
    assert swimmy.__file__ is not None
