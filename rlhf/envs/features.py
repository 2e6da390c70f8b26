"""What a trained model makes of a text, as an observation. Axes: L tokens, D features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rlhf.envs.rows import Features, Observation

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rlhf.artifacts.open import OpenedModel


def model_features(source: OpenedModel | tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]) -> Features:
    """A trained model's mean hidden state as features of a text.

    The state is that of the last layer, before any head; of an encoder-decoder it is the encoder's. A text longer than
    the model's context is cut at the end.

    Args:
        source: What `open_stage` or `open_model` opened, or a model of transformers and its tokenizer.

    Returns:
        A function from a text to float32 of shape D, the model's hidden size; zeros for a text without tokens.
    """
    import torch

    from rlhf.models.adapters import without_peft
    from rlhf.models.load import context_length

    if isinstance(source, tuple):
        model, tokenizer = without_peft(source[0]), source[1]
    else:
        model = source.policy() if source.kind == "policy" else source.scorer()
        tokenizer = source.tokenizer
    backbone = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    backbone.eval()
    limit = context_length(model.config)
    device, width = next(backbone.parameters()).device, model.config.get_text_config().hidden_size

    @torch.no_grad()
    def features(text: str) -> Observation:
        ids = tokenizer(text, truncation=limit is not None, max_length=limit)["input_ids"]
        ids_1L = torch.tensor([ids], dtype=torch.long, device=device)
        if not ids:
            return np.zeros(width, dtype=np.float32)
        states_1LD = backbone(input_ids=ids_1L, attention_mask=torch.ones_like(ids_1L)).last_hidden_state
        return np.asarray(states_1LD[0].float().mean(0).cpu())

    return features
