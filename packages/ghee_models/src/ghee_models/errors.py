"""Every error that ghee-models raises, in one tree.

ModelsError
├── UnknownModelError (also LookupError)   no model has this id; the nearest ids are named
├── DuplicateModelError (also ValueError)  two models of one id; both sources are named
├── ConfigError (also ValueError)          a setting is unknown or of the wrong type; all of them at once
├── DataError (also ValueError)            the data breaks the schema; carries the checker's report
├── DatasetError                           a public data set could not be fetched, or is not the one expected
├── ArtifactError                          a saved model is damaged, of a newer format, or not there
├── TrainingError                          training cannot give a model (a loss that is not finite, one class only)
├── TrackingError                          the tracking server or the registry refused or did not answer
└── PromotionError                         a version does not meet what its promotion requires
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ghee_models.checker import Report


class ModelsError(Exception):
    """Base of every error of ghee-models."""


class UnknownModelError(ModelsError, LookupError):
    """No model has this id."""


class DuplicateModelError(ModelsError, ValueError):
    """Two models claim one id; the message names where each comes from."""


class ConfigError(ModelsError, ValueError):
    """Settings that are unknown or of the wrong type; the message lists all of them."""


class DataError(ModelsError, ValueError):
    """The data breaks the schema. `report` holds every violation that was found."""

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))
        self.report = report

    def __reduce__(self) -> tuple[type[DataError], tuple[Report]]:
        return DataError, (self.report,)  # it travels from a rank to the driver


class DatasetError(ModelsError):
    """A public data set could not be fetched, or its bytes are not the expected ones."""


class ArtifactError(ModelsError):
    """A saved model is damaged, of a newer format, or not there."""


class TrainingError(ModelsError):
    """Training cannot give a model: the loss is not finite, there is one class only, no row is left."""


class TrackingError(ModelsError):
    """The tracking server or the registry refused, or did not answer."""


class PromotionError(ModelsError):
    """A version does not meet what its promotion requires; no alias was moved."""
