"""The training loop: same configuration, same bytes; interrupted and resumed, the same bytes."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from morphbits import config, training
from morphbits.errors import UserError
from morphbits.models.synthmorph_torch import SynthMorph, init_model
from morphbits.training import TrainConfig, train

TOY = TrainConfig(
    enc="2 2", dec="2 2", steps=3, coarse_steps=3, warm_up=1, learning_rate=1e-2, threads=1
)


def outputs(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "model.h5").read_bytes(), (folder / "log.csv").read_bytes()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(TOY, folder)
    return folder


def test_same_configuration_gives_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    train(TOY, tmp_path, save_every=1)
    assert outputs(tmp_path) == outputs(trained)


def test_another_seed_gives_another_model(trained: Path, tmp_path: Path) -> None:
    train(replace(TOY, seed=2), tmp_path)
    assert outputs(tmp_path)[0] != outputs(trained)[0]


def test_resumed_training_equals_an_uninterrupted_one(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = training.training_pair

    def killed_in_the_third_step(config: TrainConfig, step: int) -> training.Pair:
        if step == 2:
            raise KeyboardInterrupt
        return pair(config, step)

    monkeypatch.setattr(training, "training_pair", killed_in_the_third_step)
    with pytest.raises(KeyboardInterrupt):
        train(TOY, tmp_path, save_every=1)
    assert not (tmp_path / "model.h5").exists()
    monkeypatch.undo()
    train(TOY, tmp_path, resume=True)
    assert outputs(tmp_path) == outputs(trained)


def test_the_model_has_learned_something(trained: Path) -> None:
    start = init_model(TOY.architecture(), TOY.seed, training.FLOW_STD).get_weights()
    weights = SynthMorph.load(trained / "model.h5").get_weights()
    assert all((weights[name] != start[name]).any() for name in weights)


def test_log_has_one_row_per_step(trained: Path) -> None:
    header, *rows = (trained / "log.csv").read_text().splitlines()
    assert header.split(",") == list(training.LOG_COLUMNS)
    assert [row.split(",")[0] for row in rows] == ["0", "1", "2"]


def test_a_finished_folder_is_not_overwritten(trained: Path) -> None:
    with pytest.raises(UserError, match="holds a training already"):
        train(TOY, trained)


def test_resume_refuses_another_configuration(trained: Path) -> None:
    with pytest.raises(UserError, match="another smoothness"):
        train(replace(TOY, smoothness=0.5), trained, resume=True)


def test_resume_needs_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training to resume"):
        train(TOY, tmp_path / "none", resume=True)


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lower learning_rate"):
        train(replace(TOY, learning_rate=1e30), tmp_path)


def test_settings_of_torch_come_back(trained: Path) -> None:
    memory = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    with pytest.raises(RuntimeError), training.deterministic(before[1] + 1):
        raise RuntimeError
    assert before == (torch.are_deterministic_algorithms_enabled(), torch.get_num_threads())
    assert torch.utils.deterministic.fill_uninitialized_memory == memory  # type: ignore[attr-defined]


def test_one_dnn_convolutions_are_the_models_own_within_rounding() -> None:
    model = init_model(TOY.architecture(), seed=1)
    images = torch.rand(2, 2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.svf(*images)
        with training.OneDnnConvolution():
            svf = model.svf(*images)
    # sums of 27 × 4 products in five layers, in another order
    assert torch.allclose(
        svf, expected, rtol=0, atol=5 * 108 * 2**-24 * float(expected.abs().max())
    )


def test_a_recipe_and_the_command_line_take_numbers(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("learning_rate = 1e-3\nsmoothness = 1\n")
    assert config.from_toml(TrainConfig, recipe) == TrainConfig(learning_rate=1e-3, smoothness=1.0)
    parser = argparse.ArgumentParser()
    config.add_arguments(parser, TrainConfig)
    arguments = parser.parse_args(["--learning-rate", "1e-3"])
    assert config.from_arguments(TrainConfig, arguments).learning_rate == 1e-3
    with pytest.raises(SystemExit):
        parser.parse_args(["--smoothness", "much"])
