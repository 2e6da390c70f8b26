"""TRL's trainers that hold a policy to a reference: rows tokenised already, and reference log-probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers
import trl
from accelerate.utils import fsdp2_prepare_model
from datasets import Dataset
from datasets.fingerprint import Hasher

from rlhf.trl_trainers.speedups import FasterTrainer

if TYPE_CHECKING:

    class _Base(FasterTrainer):
        """What TRL's trainers with a reference have."""

        _precompute_model_hash: Any

        def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset: ...

        def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any: ...
else:
    _Base = FasterTrainer


class ReferenceTrainer(_Base):
    """In front of a trainer of TRL's with a reference: `class DPOTrainer(ReferenceTrainer, trl.DPOTrainer)`.

    It takes rows with `prompt_ids` as they are; TRL's SFT and reward trainers do so by themselves, while those with a
    reference tokenise whatever they are given.
    """

    _reference_key: str | None = None

    def __init__(self, model: Any, ref_model: Any = None, *args: Any, **kwargs: Any) -> None:
        self._given_reference = ref_model
        super().__init__(model, ref_model, *args, **kwargs)

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator; under FSDP shard the reference, too.

        TRL does that later as if every process had its weights; here the main process alone may have read them.
        """
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled and self._given_reference is not None:
            self._given_reference.requires_grad_(False)
            fsdp2_prepare_model(self.accelerator, self._given_reference)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """TRL's, stored beside the dataset; its key lacks what else decides the numbers.

        Random generators are left as they were, so that a training finds them stored as it computed them.
        """
        self.patch_models()
        if self._reference_key is None:
            versions = (trl.__version__, transformers.__version__, torch.__version__)
            precision = (self.args.bf16, self.args.fp16, str(self.model.dtype))
            damping = getattr(self, "ld_alpha", None)
            self._reference_key = Hasher.hash((self._precompute_model_hash, damping, precision, versions))
            self._precompute_model_hash = self._reference_key
        with torch.random.fork_rng():
            return super()._precompute_ref_logps(dataset, name, batch_size)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        if "prompt_ids" in dataset.column_names:
            return dataset
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)
