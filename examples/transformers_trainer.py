"""The Trainer of transformers with AdamW and error feedback in 4 bits: without DDP, evaluated and
saved at the consensus, and resumed. It has 0.13 of DDP's traffic between machines with one GPU each.

    torchrun --nproc-per-node 2 examples/transformers_trainer.py [FOLDER]

Started again with the same folder, it goes on from the last checkpoint that all workers saved.
"""

import sys
from functools import partial
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from cser_bench.algorithms import (
    DistributedOptimizer,
    QSparseLocalSGD,
    QuantisedBlocks,
    consensus_checkpoint,
    load_checkpoint,
    newest_checkpoint,
)


class ConsensusTrainer(Trainer):
    """Evaluates and saves the workers' average: the model of a checkpoint, and the best one.
    Resumes each worker."""

    def __init__(
        self, model: torch.nn.Module, optimizer: DistributedOptimizer, **others: Any
    ) -> None:
        super().__init__(model, optimizers=(optimizer, None), **others)
        # Evaluation mode is without DDP, and with the autocast that `bf16=True` asks for.
        prepare_model = self.accelerator.prepare_model
        self.accelerator.prepare_model = partial(prepare_model, evaluation_mode=True)
        self.method = optimizer  # accelerate wraps its own
        at_consensus = optimizer.consensus(model)
        self.evaluate = at_consensus(self.evaluate)
        self.predict = at_consensus(self.predict)
        self.save_model = at_consensus(self.save_model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        consensus_checkpoint(
            output_dir, self.model, self.method, schedule=self.lr_scheduler
        )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_checkpoint(
                checkpoint, self.model, self.method, schedule=self.lr_scheduler
            )


def counting(num_samples: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Returns sequences that count up from a number, modulo 32."""
    starts = torch.randint(
        32, (num_samples, 1), generator=torch.Generator().manual_seed(seed)
    )
    return [
        {"input_ids": row, "labels": row} for row in (starts + torch.arange(16)) % 32
    ]


folder = sys.argv[1] if len(sys.argv) > 1 else "checkpoint/transformers"
arguments = TrainingArguments(
    folder,
    use_cpu=not torch.cuda.is_available(),
    num_train_epochs=3,
    per_device_train_batch_size=16,
    learning_rate=0.01,
    eval_strategy="epoch",
    save_strategy="epoch",
    load_best_model_at_end=True,
    logging_steps=20,
    disable_tqdm=True,
    report_to="none",
)
model = GPT2LMHeadModel(
    GPT2Config(vocab_size=32, n_positions=16, n_embd=32, n_layer=1, n_head=2)
).to(arguments.device)
four_bits = {"compressor": QuantisedBlocks(4), "sync_interval": 1}
trainer = ConsensusTrainer(
    model,
    QSparseLocalSGD(
        model.parameters(), lr=arguments.learning_rate, local_step="adamw", **four_bits
    ),
    args=arguments,
    train_dataset=counting(1024, seed=1),
    eval_dataset=counting(256, seed=2),
)
newest = newest_checkpoint(folder)
trainer.train(resume_from_checkpoint=str(newest) if newest else None)
trainer.save_model()  # the best model, at the consensus
if trainer.is_world_process_zero():
    optimizer = trainer.method
    print(
        f"sent by this worker: {optimizer.traffic.training_bits / 8e6:.3f} MB; on its link "
        f"{optimizer.traffic_share(max(2, arguments.world_size)):.4f} of DDP's traffic, on 8 GPUs "
        f"{optimizer.traffic_share(8):.4f}"
    )
