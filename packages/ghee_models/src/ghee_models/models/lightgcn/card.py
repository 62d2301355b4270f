"""Card of LightGCN."""

from dataclasses import dataclass

from ghee_models.card import DataFormat, ModelCard, Reference, Task


@dataclass
class Config:
    """Settings of LightGCN."""

    dim: int = 64  # length of the vectors
    layers: int = 2  # rounds of propagation
    lr: float = 1e-2  # Adam's learning rate
    l2: float = 2e-3  # weight of half the mean squared norm of the layer-0 vectors in a batch


CARD = ModelCard(
    id="lightgcn",
    tasks=(Task.RECOMMENDATION,),
    data=DataFormat.INTERACTIONS,
    summary="Vectors of users and items, smoothed over the graph of who took what; also made for user vectors.",
    paper="He et al. 2020, LightGCN: Simplifying and Powering Graph Convolution Network, arXiv:2002.02126",
    config=Config,
    implementation="ghee_models.models.lightgcn.model:LightGCN",
    references=(
        Reference(
            protocol="ml100k-lightgcn",
            metric="ndcg@10",
            figure=0.2920,
            source="RecBole 1.2.1's BPR, general.rst; its LightGCN at defaults measured 0.2910 on the same split",
            at_least=0.310,
            split_digest="e488fd4abc5b7202",
        ),
    ),
)
