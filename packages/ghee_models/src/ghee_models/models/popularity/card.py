"""Card of the popularity baseline."""

from dataclasses import dataclass

from ghee_models.card import DataFormat, ModelCard, Reference, Task


@dataclass
class Config:
    """Popularity has no settings."""


CARD = ModelCard(
    id="popularity",
    tasks=(Task.RECOMMENDATION,),
    data=DataFormat.INTERACTIONS,
    summary="The items with most interactions, without those that the user has had.",
    paper="Baseline; see Dacrema et al. 2019, Are We Really Making Much Progress?, doi:10.1145/3298689.3347058",
    config=Config,
    implementation="ghee_models.models.popularity.model:Popularity",
    references=(
        Reference(
            protocol="ml100k-popularity",
            metric="ndcg@10",
            figure=0.1416,
            source="own computation, RecBole top-N protocol; deterministic",
            at_least=0.1406,
            at_most=0.1426,
            split_digest="e488fd4abc5b7202",
        ),
    ),
    closed_form=True,
)
