"""Card of BPR-MF."""

from dataclasses import dataclass

from ghee_models.card import DataFormat, ModelCard, Reference, Task


@dataclass
class Config:
    """Settings of BPR-MF."""

    dim: int = 64  # length of the vectors
    lr: float = 1e-3  # Adam's learning rate
    l2: float = 0.0  # weight of half the mean squared norm of the vectors in a batch


CARD = ModelCard(
    id="bpr-mf",
    tasks=(Task.RECOMMENDATION,),
    data=DataFormat.INTERACTIONS,
    summary="A vector per user and item, trained so that what a user took scores above what they did not.",
    paper="Rendle et al. 2009, BPR: Bayesian Personalized Ranking from Implicit Feedback, arXiv:1205.2618",
    config=Config,
    implementation="ghee_models.models.bpr_mf.model:BPRMF",
    references=(
        Reference(
            protocol="ml100k-bpr-mf",
            metric="ndcg@10",
            figure=0.2920,
            source="RecBole 1.2.1, docs/source/get_started/started/general.rst",
            at_least=0.288,
            split_digest="e488fd4abc5b7202",
        ),
        Reference(
            protocol="ml100k-bpr-mf",
            metric="recall@10",
            figure=0.2523,
            source="RecBole 1.2.1, docs/source/get_started/started/general.rst",
            at_least=0.245,
            split_digest="e488fd4abc5b7202",
        ),
    ),
)
