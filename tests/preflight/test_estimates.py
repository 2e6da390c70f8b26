"""Estimates of memory: hand numbers of a tiny config, and what must grow or shrink with which setting."""

import dataclasses

import pytest
from transformers import LlamaConfig

from rlhf.config.load import load_project
from rlhf.errors import UserError
from rlhf.preflight import Machine, estimate
from rlhf.preflight.estimates import Models, situation_of
from rlhf.preflight.machine import square_products
from rlhf.preflight.measure import Measured
from rlhf.preflight.memory import optimizer_bytes, phases
from rlhf.preflight.seconds import pass_flops, seconds_by_steps

NUMBERS = 2 * (64 + 32 + 32 + 64 + 3 * 96 + 16) + 400 + 400 + 8
"""Of the Llama below: two layers of q, k, v, o, three matrices of 8 by 12 and two norms; embedding, head, norm."""
ADAPTER = 2 * 2 * (16 + 12 + 12 + 16 + 3 * 20)
"""r (inputs + outputs) of the seven matrices, at rank 2."""
CPU = Machine("CPU", "cpu", 1e9, 1e9)


@pytest.fixture(scope="module")
def config_only(tmp_path_factory):
    """A folder with a config and nothing else."""
    folder = tmp_path_factory.mktemp("config")
    LlamaConfig(
        vocab_size=50, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def project_of(tmp_path, config_only, stages, adapter="{r: 2}", **overrides):
    path = tmp_path / "project.yaml"
    text = f"name: p\nmodel: {{name_or_path: {config_only}, adapter: {adapter}}}\nevaluate: {{enabled: false}}\n"
    sets = "data:\n  demonstrations: {source: a.jsonl}\n  preferences: {source: b.jsonl}\n"
    path.write_text(f"{text}{sets}stages: {stages}\n", encoding="utf-8")
    return load_project(path, [f"{key}={value}" for key, value in overrides.items()])


def phases_of(project, name, machine=CPU):
    return phases(situation_of(project, name, machine, None, Models()))


def test_adapter_by_hand(tmp_path, config_only):
    training = phases_of(project_of(tmp_path, config_only, "{sft: {}}"), "sft")
    assert training["training"]["weights"] == 4 * NUMBERS
    assert training["training"]["adapters"] == 4 * ADAPTER
    assert training["optimizer step"]["gradients"] == 4 * ADAPTER
    assert training["optimizer step"]["optimizer"] == 8 * ADAPTER


def test_a_base_in_4_bits_by_hand(tmp_path, config_only):
    """Half a byte a weight of a matrix, a byte for 64 of them, and 4 bytes for a matrix so small."""
    training = phases_of(project_of(tmp_path, config_only, "{sft: {}}", **{"model.quantization": "nf4"}), "sft")
    matrices = 2 * (2 * (32 + 1 + 4) + 2 * (16 + 1 + 4) + 3 * (48 + 2 + 4))
    assert training["training"]["weights"] == matrices + 4 * (2 * 16 + 400 + 400 + 8)
    assert training["training"]["adapters"] == 4 * ADAPTER


def test_all_weights_by_hand(tmp_path, config_only):
    training = phases_of(project_of(tmp_path, config_only, "{sft: {}}", adapter="null"), "sft")
    assert training["optimizer step"]["weights"] == training["optimizer step"]["gradients"] == 4 * NUMBERS
    assert training["optimizer step"]["optimizer"] == 8 * NUMBERS
    assert "adapters" not in training["training"]


def test_four_roles_on_one_base_and_apart(tmp_path, config_only):
    """With LoRA one base and three adapters; with all weights policy, critic and reward model, each with its head."""
    stages = "{reward: {}, ppo: {max_new_tokens: 8}}"
    shared = phases_of(project_of(tmp_path, config_only, stages), "ppo")["training"]
    assert shared["weights"] == 4 * NUMBERS
    assert shared["adapters"] == 4 * 3 * ADAPTER
    apart = phases_of(project_of(tmp_path, config_only, stages, adapter="null"), "ppo")["training"]
    scorer = NUMBERS - 400 + 8
    assert apart["weights"] == 4 * (2 * NUMBERS + 2 * scorer)
    one = phases_of(project_of(tmp_path, config_only, stages, **{"stages.ppo.critic": "shared"}), "ppo")["training"]
    assert one["adapters"] == 4 * 2 * ADAPTER


def test_a_second_model_is_the_reference_where_it_is_not_stored(tmp_path, config_only):
    def weights(**overrides):
        project = project_of(tmp_path, config_only, "{dpo: {}}", adapter="null", **overrides)
        return phases_of(project, "dpo")["training"]["weights"] / (4 * NUMBERS)

    assert weights() == 1  # one epoch: stored before training
    assert weights(**{"stages.dpo.num_train_epochs": 0.5}) == 2
    assert weights(**{"stages.dpo.precompute_ref_log_probs": "false"}) == 2


@pytest.mark.parametrize(("engine", "weights", "optimizer"), [("ddp", 1, 1), ("zero2", 1, 4), ("fsdp2", 4, 4)])
def test_sharding_divides(tmp_path, config_only, engine, weights, optimizer):
    project = project_of(tmp_path, config_only, "{sft: {}}", adapter="null")
    alone = phases_of(project, "sft")["optimizer step"]
    spread = phases_of(project, "sft", dataclasses.replace(CPU, devices=4, engine=engine))["optimizer step"]
    assert spread["weights"] == alone["weights"] / weights
    assert spread["optimizer"] == alone["optimizer"] / optimizer


def test_more_rows_hold_more_activations(tmp_path, config_only):
    def activations(rows, **overrides):
        fields = {"stages.sft.per_device_train_batch_size": rows, **overrides}
        return phases_of(project_of(tmp_path, config_only, "{sft: {}}", **fields), "sft")["training"]["activations"]

    assert activations(2) == 2 * activations(1)
    assert activations(4, **{"stages.sft.gradient_checkpointing": "true"}) < activations(4)
    assert activations(1, **{"stages.sft.max_length": 32}) < activations(1)


def test_stages_of_another_type_are_traced_anew(tmp_path, config_only):
    """Two stages on the same base, one of which computes in bfloat16."""
    models = Models()

    def activations(bf16):
        project = project_of(tmp_path, config_only, "{sft: {}}", **{"stages.sft.bf16": bf16})
        return phases(situation_of(project, "sft", CPU, None, models))["training"]["activations"]

    assert activations("false") != activations("true")


def test_optimizers():
    assert [optimizer_bytes(name) for name in ("adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "sgd")] == [
        8, 2, 2, 0,
    ]  # fmt: skip


def test_the_first_change_that_suffices(tmp_path, config_only):
    project = project_of(tmp_path, config_only, "{sft: {per_device_train_batch_size: 8}}")
    (roomy,) = estimate(project, CPU)
    assert (roomy.fits, roomy.change, roomy.phase) == (True, None, "training")
    (tight,) = estimate(project, dataclasses.replace(CPU, memory=roomy.bytes - 1))
    assert (tight.fits, tight.bytes) == (False, roomy.bytes)
    assert tight.change is not None
    assert tight.change.setting == "per_device_train_batch_size: 4"
    assert tight.change.bytes < roomy.bytes
    (hopeless,) = estimate(project, dataclasses.replace(CPU, memory=1.0))
    assert hopeless.change is not None
    assert hopeless.change.bytes > 1.0


@pytest.mark.parametrize("policy", ["label", "span"])
def test_a_policy_that_writes_nothing_samples_nothing(tmp_path, tiny_bert, policy):
    """The model reads 128 tokens, as many as a reply may have in the usual settings."""
    project = project_of(tmp_path, tiny_bert, "{sft: {}, ppo: {}}", adapter="null", **{"model.policy": policy})
    parts = phases_of(project, "ppo")
    assert {"training", "sampling", "measuring"} <= parts.keys()
    assert not parts["sampling"].get("cache")


def test_an_unknown_model_is_one_line(tmp_path, config_only):
    project = project_of(tmp_path, config_only, "{sft: {}}", **{"model.name_or_path": "no/such-model"})
    with pytest.raises(UserError, match="no/such-model") as raised:
        estimate(project, CPU)
    assert "\n" not in str(raised.value)


def test_a_machine_that_is_not_here():
    machine = Machine.given(devices=8, memory=80, engine="fsdp2")
    assert (machine.devices, machine.memory, machine.kind, machine.sharded) == (8, 80e9, "gpu", True)
    assert Machine.given().kind == Machine.here().kind


def test_the_speed_of_a_machine_that_is_too_busy_to_be_measured_in_time():
    assert square_products(seconds=0.0) > 1e6


def test_time_by_measured_steps_by_hand(tmp_path, config_only):
    """1,000 rows in steps of 8: 125 steps of 3 s, 10 s around them, and as long again for what is held out."""
    project = project_of(tmp_path, config_only, "{sft: {}}")
    (by_arithmetic,) = estimate(project, CPU)
    situation = situation_of(project, "sft", CPU, None, Models())
    least, expected, most = seconds_by_steps(situation, Measured(1e9, (2.0, 4.0), (), 10.0))
    training, evaluation = (pass_flops(situation, passing) for passing in situation.workload.passes)
    assert evaluation == pytest.approx(training)  # twice as many rows, of which each costs half as much
    assert expected == pytest.approx(10 + 2 * 125 * 3)
    assert least < expected < most
    assert by_arithmetic.seconds[1] == pytest.approx((by_arithmetic.seconds[0] * by_arithmetic.seconds[2]) ** 0.5)


def test_time_of_rollouts_by_hand(tmp_path, config_only):
    """64 completions in rollouts of 4: 16 of them, the first 5 s and others 3; twice 16 steps of 2 s, 10 s around."""
    settings = "{max_new_tokens: 8, total_episodes: 64, per_device_train_batch_size: 4, num_ppo_epochs: 2}"
    project = project_of(tmp_path, config_only, f"{{reward: {{}}, ppo: {settings}}}")
    situation = situation_of(project, "ppo", CPU, None, Models())
    measured = Measured(1e9, (2.0, 2.0, 2.0), (5.0, 3.0), 10.0)
    assert seconds_by_steps(situation, measured)[1] == pytest.approx(10 + 32 * 2 + 5 + 15 * 3)


@pytest.mark.parametrize(("memory", "setting", "times"), [(1e10, "null", 1), (1e6, "null", 0), (1e6, "true", 1)])
def test_weights_that_stay_whole_while_the_policy_samples(tmp_path, config_only, memory, setting, times):
    stages = f"{{reward: {{}}, ppo: {{max_new_tokens: 8, gather_for_rollouts: {setting}}}}}"
    machine = Machine("GPU", "gpu", memory, 1e9, devices=2, engine="fsdp2")
    sampling = phases_of(project_of(tmp_path, config_only, stages), "ppo", machine)["sampling"]
    assert sampling.get("gathered weights", 0) == times * 4 * NUMBERS
