"""Settings: strict, all problems at once, whatever way they come in."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from ghee_models import settings as st
from ghee_models.composition import compose, sweep
from ghee_models.errors import ConfigError, UnknownModelError


def test_every_wrong_setting_is_named_at_once() -> None:
    wrong = {"data": {"pth": "x"}, "trainer": {"epochs": "many", "batch_size": True}, "evaluation": {}}
    with pytest.raises(ConfigError) as caught:
        st.build(st.Settings, wrong, where="settings")
    text = str(caught.value)
    for part in ("data.pth is unknown", "Did you mean settings.data.path?", "epochs is 'many'", "batch_size is True"):
        assert part in text
    assert "settings.evaluation is unknown" in text


def test_settings_survive_their_own_dict() -> None:
    made = st.Settings(data=st.DataConfig(path="x", fields={"a": "numeric"}, positive_from=4.0))
    assert st.build(st.Settings, asdict(made), where="settings") == made


def test_values_outside_what_is_allowed_are_listed_together() -> None:
    wrong = st.Settings(
        data=st.DataConfig(unknown="guess", fields={"a": "words"}),
        split=st.SplitConfig(kind="random", ratios=[0, 1, 1]),
        trainer=st.TrainerConfig(epochs=0),
        sampler=st.SamplerConfig(name="hard"),
    )
    with pytest.raises(ConfigError) as caught:
        st.check_settings(wrong)
    for part in ("data.unknown", "data.fields.a", "split.kind", "split.ratios", "trainer.epochs", "sampler.name"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=fm", "model.dimm=3", "trainer.epoch=3"], "Did you mean trainer.epochs?"),
        (["model=fm", "model.dimm=3", "trainer.epoch=3"], "Did you mean model.dim?"),
        (["trainr.epochs=3"], "trainr is unknown"),
        (["data.minimum.age=0", "data.fields.age=categorical"], "'age'"),
        (["data.classes=[a,b]"], "label_kind is not class"),
        (["model=fm", "+model.dimm=3"], "Did you mean model.dim?"),
        (["model=fm", "+model._target_=os.system"], "model._target_ is unknown"),
        (["model=fm", "model.dim=abc"], "could not be converted to Integer"),
        (["+somewhere=1"], "somewhere is unknown"),
        (["split=nowhere"], "Available options in 'split'"),
        (["model.lr=="], "Error parsing"),
        (["split.ratios=[0,1,1]"], "split.ratios"),
    ],
)
def test_hydra_overrides_are_checked_strictly(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert message in str(caught.value)


def test_an_unknown_model_is_named_with_the_known_ones() -> None:
    with pytest.raises(UnknownModelError, match=r"no model 'deepfn'.*deepfm"):
        compose(["model=deepfn"])


def test_a_users_folder_adds_options_and_experiments(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "experiment").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("defaults: [default]\npath: s3://lake/clicks\nlabel: y\n")
    experiment = "# @package _global_\ndefaults:\n  - override /model: mlp\n  - override /data: mine\nmodel: {dim: 4}\n"
    (tmp_path / "experiment" / "try.yaml").write_text(experiment)
    made = compose(["experiment=try", "trainer.epochs=3"], [str(tmp_path)])
    assert (made.model, made.config.dim, made.settings.data.path) == ("mlp", 4, "s3://lake/clicks")
    assert made.settings.trainer.epochs == 3


def test_a_users_file_cannot_decide_what_is_imported(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "evil.yaml").write_text(f"_target_: pathlib.Path.touch\nself: {tmp_path}/touched\n")
    with pytest.raises(ConfigError, match="_target_"):
        compose(["model=fm", "data=evil"], [str(tmp_path)])
    assert not (tmp_path / "touched").exists()


def test_a_sweep_is_the_product_of_its_choices_and_checked_before_it_runs() -> None:
    made = sweep(["experiment=ml100k-fm", "model=fm,deepfm", "model.lr=1e-3,5e-3"])
    assert [(c.model, c.config.lr) for c in made] == [("fm", 1e-3), ("fm", 5e-3), ("deepfm", 1e-3), ("deepfm", 5e-3)]
    with pytest.raises(ConfigError, match=r"model\.lr|Float"):
        sweep(["model=fm", "model.lr=1e-3,fast"])


def test_the_digest_of_a_configuration_leaves_tracking_out() -> None:
    one = compose(["model=fm"])
    other = compose(["model=fm", "tracking.experiment=elsewhere"])
    third = compose(["model=fm", "model.dim=17"])
    digest = st.config_digest(one.config, one.settings)
    assert digest == st.config_digest(other.config, other.settings)
    assert digest != st.config_digest(third.config, third.settings)
