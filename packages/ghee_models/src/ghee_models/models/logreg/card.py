"""Card of logistic regression."""

from dataclasses import dataclass

from ghee_models.card import DataFormat, ModelCard, Reference, Task


@dataclass
class Config:
    """Settings of logistic regression."""

    lr: float = 1e-3  # Adam's learning rate
    weight_decay: float = 0.0  # L2 added to the gradient
    pooling: str = "sum"  # of a field's several categories: sum, mean, or sqrt (sum / sqrt(number))


_SOURCE = "RecBole 1.2.1, docs/source/get_started/started/context-aware.rst"

CARD = ModelCard(
    id="logreg",
    tasks=(Task.CTR, Task.CLASSIFICATION, Task.RATING),
    data=DataFormat.SPARSE_ROWS,
    summary="A weight per value of each field: the baseline of every click model.",
    paper="McMahan et al. 2013, Ad Click Prediction: a View from the Trenches, doi:10.1145/2487575.2488200",
    config=Config,
    implementation="ghee_models.models.logreg.model:LogisticRegression",
    references=(
        Reference("ml100k-logreg", "auc", 0.7765, _SOURCE, 0.7755, 0.7775, "5368aae00ca733de"),
        Reference("ml100k-logreg", "logloss", 0.5620, _SOURCE, 0.5610, 0.5630, "5368aae00ca733de"),
        Reference(
            protocol="ml100k-logreg-gender",
            metric="auc",
            figure=0.7726,
            source="no published figure known; own earlier run of L2 logistic regression: rows of length 1, C = 1",
            at_least=0.77,
            split_digest="f67c24f20274397c",
            folds=5,
        ),
    ),
)
