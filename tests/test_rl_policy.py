"""The policy in training as its own labeling model, and a step of TRL's trainer with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cpmi.labelers.cpmi import CPMISettings
from cpmi.models.hf import HFModel
from cpmi.models.policy import PolicyScorer, bare
from cpmi.prompts import CUES, plan_scoring
from cpmi.rl import CPMIReward
from tiny_models import byte_tokenizer, tiny_model

QUESTION = "Ann has 3 bags of 4 apples and eats 5. How many are left?"


def scored(scorer: Any) -> list[float]:
    (plan,) = plan_scoring(QUESTION, ["It is 12.", "So 7."], ["7", "8"], [(), (0,), (0, 1)], CUES[:1], scorer, "target")
    (result,) = scorer.logprobs([plan.tree])
    return [float(value) for value in result.logprobs[plan.tree.scored]]


def test_the_policy_scores_as_an_engine_does_and_stays_as_it_was() -> None:
    model, tokenizer = tiny_model("llama", attention_dropout=0.5), byte_tokenizer()
    expected = scored(HFModel(tiny_model("llama"), tokenizer, name="same"))
    model.train()
    model.model.layers[0].eval()  # somebody's frozen layer
    modes = [module.training for module in model.modules()]
    assert scored(PolicyScorer(model, tokenizer)) == pytest.approx(expected, abs=1e-5)
    assert [module.training for module in model.modules()] == modes
    # It can still be trained: nothing of the pass without gradients is left in it.
    ids = torch.arange(10)[None]
    model(ids, labels=ids).loss.backward()
    assert model.lm_head.weight.grad.abs().sum() > 0


def test_the_policy_scores_with_the_weights_of_the_moment() -> None:
    model, tokenizer = tiny_model("llama"), byte_tokenizer()
    scorer = PolicyScorer(model, tokenizer)
    before = scored(scorer)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    after = scored(scorer)
    assert after != pytest.approx(before, abs=1e-3)
    assert after == pytest.approx(scored(HFModel(model, tokenizer, name="same")), abs=1e-5)


# PEFT asks Transformers by a name that the latter is about to drop.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_policy_behind_adapters_and_wrappers() -> None:
    from peft import LoraConfig, get_peft_model

    tokenizer = byte_tokenizer()
    plainly = scored(PolicyScorer(tiny_model("llama"), tokenizer))
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    wrapped = torch.nn.Module()
    wrapped.module = adapted
    assert bare(wrapped) is adapted.get_base_model()
    with_adapter = scored(PolicyScorer(wrapped, tokenizer))
    assert with_adapter != pytest.approx(plainly, abs=1e-3)  # the adapter takes part


def test_a_failure_in_the_engine_leaves_the_mode_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama").train()
    scorer = PolicyScorer(model, byte_tokenizer())

    def fail(*arguments: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(HFModel, "logprobs", fail)
    with pytest.raises(RuntimeError, match="broken"):
        scored(scorer)
    assert model.training


def test_a_training_step_of_trl(tmp_path: Any) -> None:
    """GRPO on a tiny random model: the trainer calls the reward, logs what it tells, and the policy is trained."""
    pytest.importorskip("trl", reason="TRL is not installed; run: pip install 'cpmi[rl]'")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, at import and of a model without a chat template
        import datasets
        from trl.trainer.grpo_config import GRPOConfig
        from trl.trainer.grpo_trainer import GRPOTrainer

        model, tokenizer = tiny_model("llama"), byte_tokenizer()
        tokenizer.pad_token = tokenizer.eos_token
        reward = CPMIReward(model, tokenizer=tokenizer, cpmi=CPMISettings(templates=CUES[:1]))
        config = GRPOConfig(
            output_dir=str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=8,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
        )
        data = datasets.Dataset.from_list([{"prompt": "What is 3 + 4?", "answer": "7"}] * 4)
        trainer = GRPOTrainer(model, reward, config, data, processing_class=tokenizer)
        trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "reward" in entry)
    assert logged["rewards/cpmi/mean"] == pytest.approx(logged["reward"])
    assert logged["cpmi/unjudged"] == 0
    assert "cpmi/steps" in logged
