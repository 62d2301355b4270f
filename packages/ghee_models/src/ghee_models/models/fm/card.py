"""Card of the factorization machine."""

from dataclasses import dataclass

from ghee_models.card import DataFormat, ModelCard, Reference, Task


@dataclass
class Config:
    """Settings of the factorization machine."""

    dim: int = 16  # length of the factors
    lr: float = 2e-3  # Adam's learning rate
    weight_decay: float = 3e-5  # L2 added to the gradient
    embedding: str = "full"  # full, hash or quotient-remainder
    buckets: int = 0  # rows of a composite embedding


CARD = ModelCard(
    id="fm",
    tasks=(Task.CTR, Task.RATING),
    data=DataFormat.SPARSE_ROWS,
    summary="A weight per value and a vector per value: all pairs of fields interact, in linear time.",
    paper="Rendle 2010, Factorization Machines, doi:10.1109/ICDM.2010.127",
    config=Config,
    implementation="ghee_models.models.fm.model:FM",
    references=(
        Reference(
            protocol="ml100k-fm",
            metric="auc",
            figure=0.7765,
            source="RecBole 1.2.1's LR, context-aware.rst; FM has no published figure there, own earlier runs: 0.7876",
            at_least=0.785,
            split_digest="5368aae00ca733de",
        ),
        Reference(
            protocol="ml100k-fm-rating",
            metric="rmse",
            figure=0.934,
            source="Surprise 1.1.5, README: SVD, random 5-fold, other folds; its SVD++: 0.919",
            at_most=0.919,
            split_digest="021f79f016d7bd0f",
            folds=5,
        ),
    ),
)
