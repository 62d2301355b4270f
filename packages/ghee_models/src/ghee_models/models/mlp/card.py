"""Card of the deep network for sparse rows."""

from dataclasses import dataclass, field

from ghee_models.card import DataFormat, ModelCard, Reference, Task


@dataclass
class Config:
    """Settings of the deep network."""

    dim: int = 32  # length of the vectors
    hidden: list[int] = field(default_factory=lambda: [128, 128, 128])  # widths of the deep part
    dropout: float = 0.2  # after each hidden layer
    lr: float = 3e-3  # Adam's learning rate
    weight_decay: float = 2e-4  # L2 added to the gradient
    embedding: str = "full"  # full, hash or quotient-remainder
    buckets: int = 0  # rows of a composite embedding


CARD = ModelCard(
    id="mlp",
    tasks=(Task.CTR, Task.CLASSIFICATION, Task.RATING),
    data=DataFormat.SPARSE_ROWS,
    summary="A deep network for sparse input, with a linear part and pooled pairs; one output or several classes.",
    paper=(
        "Cheng et al. 2016, Wide & Deep Learning for Recommender Systems, arXiv:1606.07792; "
        "He and Chua 2017, Neural Factorization Machines, arXiv:1708.05027"
    ),
    config=Config,
    implementation="ghee_models.models.mlp.model:MLP",
    references=(
        Reference(
            protocol="ml100k-mlp",
            metric="auc",
            figure=0.7765,
            source="RecBole 1.2.1's LR, context-aware.rst; own earlier runs of DeepFM: 0.7897 to 0.7902",
            at_least=0.789,
            split_digest="5368aae00ca733de",
        ),
    ),
)
