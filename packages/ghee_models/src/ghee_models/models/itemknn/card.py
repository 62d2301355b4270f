"""Card of item-based nearest neighbours."""

from dataclasses import dataclass

from ghee_models.card import DataFormat, ModelCard, Reference, Task


@dataclass
class Config:
    """Settings of ItemKNN."""

    neighbours: int = 100  # similar items kept per item
    shrink: float = 0.0  # added to the denominator: small counts make less certain similarities


CARD = ModelCard(
    id="itemknn",
    tasks=(Task.RECOMMENDATION,),
    data=DataFormat.INTERACTIONS,
    summary="Items like the user's items: cosine of the items' users, the nearest k kept.",
    paper="Deshpande and Karypis 2004, Item-based top-N recommendation algorithms, doi:10.1145/963770.963776",
    config=Config,
    implementation="ghee_models.models.itemknn.model:ItemKNN",
    references=(
        Reference(
            protocol="ml100k-itemknn",
            metric="ndcg@10",
            figure=0.2834,
            source="own computation, RecBole top-N protocol, k = 100; deterministic",
            at_least=0.2824,
            at_most=0.2844,
            split_digest="e488fd4abc5b7202",
        ),
    ),
    closed_form=True,
)
