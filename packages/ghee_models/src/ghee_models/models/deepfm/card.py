"""Card of DeepFM."""

from dataclasses import dataclass, field

from ghee_models.card import DataFormat, ModelCard, Reference, Task


@dataclass
class Config:
    """Settings of DeepFM."""

    dim: int = 32  # length of the factors
    hidden: list[int] = field(default_factory=lambda: [128, 128, 128])  # widths of the deep part
    dropout: float = 0.2  # after each hidden layer
    lr: float = 3e-3  # Adam's learning rate
    weight_decay: float = 2e-4  # L2 added to the gradient
    embedding: str = "full"  # full, hash or quotient-remainder
    buckets: int = 0  # rows of a composite embedding


CARD = ModelCard(
    id="deepfm",
    tasks=(Task.CTR, Task.RATING),
    data=DataFormat.SPARSE_ROWS,
    summary="A factorization machine and a deep network over the same vectors.",
    paper="Guo et al. 2017, DeepFM: A Factorization-Machine based Neural Network for CTR Prediction, arXiv:1703.04247",
    config=Config,
    implementation="ghee_models.models.deepfm.model:DeepFM",
    references=(
        Reference(
            protocol="ml100k-deepfm",
            metric="auc",
            figure=0.7765,
            source="RecBole 1.2.1's LR, context-aware.rst; own earlier runs of DeepFM: 0.7897 to 0.7902",
            at_least=0.789,
            split_digest="5368aae00ca733de",
        ),
    ),
)
