"""Card of EASE."""

from dataclasses import dataclass

from ghee_models.card import DataFormat, ModelCard, Reference, Task


@dataclass
class Config:
    """Settings of EASE."""

    l2: float = 250.0  # lambda, added to the diagonal of the Gram matrix
    max_items: int = 40_000  # items x items x 8 bytes are held twice while it is inverted: 25 GB at 40,000


CARD = ModelCard(
    id="ease",
    tasks=(Task.RECOMMENDATION,),
    data=DataFormat.INTERACTIONS,
    summary="A linear item-to-item model in closed form; hard to beat where the items are thousands.",
    paper="Steck 2019, Embarrassingly Shallow Autoencoders for Sparse Data, arXiv:1905.03375",
    config=Config,
    implementation="ghee_models.models.ease.model:EASE",
    references=(
        Reference(
            protocol="ml100k-ease",
            metric="ndcg@10",
            figure=0.3295,
            source="own computation, RecBole top-N protocol, lambda = 250; deterministic",
            at_least=0.3285,
            at_most=0.3305,
            split_digest="e488fd4abc5b7202",
        ),
    ),
    closed_form=True,
)
