"""The training of the workers at one end.

What changes from step to step, and how a step is taken, timed and saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cser_bench.algorithms import (
    Collectives,
    Purpose,
    SoloCollectives,
    StackedCollectives,
    Traffic,
)
from cser_bench.harness.records.recorder import Recorder
from cser_bench.harness.records.store import VERSION, Attempt, RunFile
from cser_bench.harness.spec.run import PlannedRun
from cser_bench.harness.tasks.samples import Batch
from cser_bench.harness.tasks.task import find_task, split_sizes
from cser_bench.harness.train import checkpoint
from cser_bench.harness.train.build import (
    MemoryFormat,
    bind_rows,
    format_of,
    local_workers,
    module_to_train,
    trainable,
)
from cser_bench.harness.train.checkpoint import CheckpointError
from cser_bench.harness.train.clock import Clock
from cser_bench.harness.train.evaluate import Score
from cser_bench.harness.train.order import (
    class_counts,
    token_weights,
    worker_batches,
    worker_shards,
)
from cser_bench.harness.train.passes import MixedPrecision, batched_backward
from cser_bench.harness.train.restarts import lose_state, tail_of, traffic_before_tail
from cser_bench.harness.train.schedule import learning_rate_at, num_steps_of

StopRequested = Callable[[], bool]


class Preempted(RuntimeError):
    """The run was asked to stop.

    Its state is saved, and another attempt can go on from there.
    """


@dataclass(frozen=True)
class Job:
    """An attempt at a run and all that it needs.

    Plain data, so that it can be sent to another process.
    """

    experiment: str
    folder: Path
    run: PlannedRun
    attempt: Attempt
    data: Path | None
    device: str
    """"cpu", or the GPU of this process: "cuda:0"."""
    cores: tuple[int, ...]
    """Cores that a run of stacked workers keeps to; it would else wander, and leave its caches
    behind."""
    checkpoint_minutes: float
    timeout_seconds: float

    @property
    def checkpoints(self) -> Path:
        return self.folder / checkpoint.FOLDER

    def recorder(self, memory_format: MemoryFormat = "contiguous") -> Recorder:
        """Return the writer of this attempt's records, with its model in that format."""
        run = RunFile(
            version=VERSION,
            run_id=self.run.run_id,
            experiment=self.experiment,
            row=self.run.row,
            seed=self.run.seed,
            config=self.run.config.model_dump(mode="json"),
            attempts=[],
        )
        return Recorder(
            self.folder,
            run,
            self.attempt.model_copy(update={"memory_format": memory_format}),
        )


class Training:
    """The state of the workers at this end, resumed from the newest checkpoint if there is one.

    `stop_requested` is asked between steps, by all workers or by none; where it is true for one,
    all stop.

    Attributes:
        recorder: None but for one worker.
        losses: sum and number of each worker's losses since the last evaluation, shape (local
        workers, 2). train_loss, score: the last ones known, None before there is one.
        schedule_length: steps per epoch and epochs, as schedule and scores count them.
        diverged_at: the step at which the run diverged, or None.
    """

    def __init__(
        self,
        job: Job,
        collectives: Collectives,
        stop_requested: StopRequested | None = None,
    ) -> None:
        config = job.run.config
        device = torch.device(job.device)
        self.job = job
        self.config = config
        self.collectives = collectives
        self.stop_requested = stop_requested
        task = find_task(config.task.name)
        samples = task.load(job.data, config.task, device)
        self.samples = samples
        model = trainable(config, device)
        self.recorder = (
            # Workers of a run hold the same score, so one of them writes.
            job.recorder(format_of(model)) if collectives.rank == 0 else None
        )
        self.num_train, self.num_evaluation = split_sizes(task, config.task)
        self.per_epoch, self.num_steps = num_steps_of(config)
        self.schedule_length = (
            self.num_steps // config.num_schedule_epochs,
            config.num_schedule_epochs,
        )
        self.models, self.optimizer = local_workers(
            config, model, collectives, self.num_steps
        )
        self._sent_before = Traffic()
        """What a method sends before a synchronous tail, by the closed form."""
        # After the optimiser: it gives parameters their places in its vectors, and what goes
        # through the passes holds on to these.
        self._choose_passes()
        self.step = 0
        self.precision = MixedPrecision(
            config.precision, device, config.label_smoothing
        )
        # (local workers, 2); float64, since a long run adds thousands of small losses.
        self.losses = torch.zeros(
            len(self.models), 2, dtype=torch.float64, device=device
        )
        self.train_loss: float | None = None
        self.score: Score | None = None
        self.diverged_at: int | None = None
        self._weights: Iterator[list[float]] | None = None
        """Weights of each step where losses are means over tokens; see `token_weights`."""
        self._divide_samples(task.num_classes)
        self.clock = Clock(collectives, device)
        self._resume()
        # After `_resume`, which finds the step at which the batches begin.
        self._batches = self._all_batches()
        # The next step's batches. No checkpoint has them: after a resume they are drawn again, by
        # the step's number.
        self._ahead: list[Batch] | None = None
        for trained in self.models:
            trained.train()

    def _divide_samples(self, num_classes: int) -> None:
        """Give each worker its shard, where workers have shards of their own, and count classes."""
        labels = self.samples.train_labels
        config = self.config
        self._shards = worker_shards(
            config.partition, labels, config.num_workers, config.seed
        )
        self.class_counts: list[list[int]] | None = None
        if self._shards is not None:
            # Shards of text are of groups, as a text task's classes are symbols or tokens.
            num_groups = self.samples.modality.num_groups or num_classes
            self.class_counts = class_counts(self._shards, labels, num_groups)

    def _choose_passes(self) -> None:
        """Choose what forward and backward passes go through: all workers at once, or one by one."""
        config = self.config
        optimizer = self.optimizer
        self._trained = [module_to_train(optimizer, model) for model in self.models]
        self._batched: Callable[[Tensor, Tensor], Tensor] | None = None
        """The passes of all workers at once, where there is such a form of them."""
        # Where samples are augmented by rank, a joint batch would not be the workers' batches.
        if (
            isinstance(optimizer.collectives, StackedCollectives)
            and self.samples.modality.joins_workers
            # The joint passes are written out by hand, without autocast and without smoothing.
            and config.precision == "fp32"
            and not config.label_smoothing
        ):
            self._batched = batched_backward(self.models[0], optimizer.flat.tensors)

    @property
    def expected_traffic(self) -> Traffic:
        """What the closed form says that a worker has sent by now."""
        return self._sent_before + self.optimizer.expected_traffic(
            self.optimizer.num_steps
        )

    def _send_everything(self) -> None:
        """Go on from the workers' average model, with every gradient sent.

        The optimiser is made anew.
        """
        config = self.config
        before = self.optimizer
        self._sent_before = traffic_before_tail(config, before, self.num_steps)
        # As `traffic_before_tail` counts it: where workers agree, nothing is sent.
        if not before.agree_after(before.num_steps):
            before.collectives.all_reduce_mean_(before.flat.parameters, Purpose.MODEL)
        self.optimizer = tail_of(
            config, before.flat.tensors, before.collectives, self.num_steps
        )
        # Making an optimiser has moved the parameters into a new vector, and models still have rows
        # of the old one.
        if isinstance(before.collectives, StackedCollectives):
            bind_rows(self.models, self.optimizer)
        self._choose_passes()

    def _resume(self) -> None:
        """Go on from the newest checkpoint, where there is one."""
        loaded = checkpoint.load(self.job.checkpoints, self._savers)
        if loaded is None:
            return
        self.step, state = loaded
        self._check_state(state)
        # The saved state is the tail's optimiser's, so that must stand first. What making it
        # averages and counts is replaced by what was saved.
        if self._is_in_tail():
            self._send_everything()
        for model, saved in zip(self.models, state["models"], strict=True):
            # In place, so parameters stay rows of the optimiser's vectors, whose other state comes
            # below.
            model.load_state_dict(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses.copy_(state["losses"])
        self.precision.load_state_dict(state["precision"])
        self.collectives.traffic.load_state_dict(state["traffic"])
        # Anew, so that what loading the checkpoint takes counts for no phase.
        self.clock = Clock(self.collectives, self.losses.device, state["clock_seconds"])

    def _is_in_tail(self) -> bool:
        """Say whether a step was taken already in which everything is sent."""
        restart = self.config.restart
        if restart is None or not restart.everything_sent:
            return False
        # Not at that step itself: its state is saved before the restart, which opens the next step.
        return self.step > round(restart.at * self.num_steps)

    def _check_state(self, state: dict[str, Any]) -> None:
        """Raise CheckpointError for a state that cannot be gone on from here.

        It is of other workers, or has its numbers in another order.
        """
        folder = self.job.checkpoints
        num_here = len(self.models)
        num_saved = len(state["models"])
        if num_saved != num_here:
            raise CheckpointError(checkpoint.of_others(folder, num_saved, num_here))
        format_here = format_of(self.models[0])
        # A checkpoint without the key is older than the other format.
        saved_format = state.get("memory_format", "contiguous")
        if saved_format != format_here:
            raise CheckpointError(
                f"the checkpoint in {folder} has its numbers in the memory format {saved_format}, "
                f"and here they are {format_here}: images lie channels last on GPUs; go on where it "
                "began, or delete it"
            )

    def save(self) -> None:
        """Write a checkpoint; see `checkpoint.save`."""
        state = {
            "memory_format": format_of(self.models[0]),
            "models": [model.state_dict() for model in self.models],
            "optimizer": self.optimizer.state_dict(),
            "losses": self.losses,
            "precision": self.precision.state_dict(),
            "traffic": self.collectives.traffic.state_dict(),
            "clock_seconds": self.clock.seconds,
        }
        check_is_newest = (
            # An attempt that was replaced may still be at work: its checkpoint must not cover its
            # successor's.
            (lambda: None) if self.recorder is None else self.recorder.check_is_newest
        )
        checkpoint.save(
            self.job.checkpoints,
            self.step,
            state,
            self._savers,
            self.job.attempt.attempt,
            check_is_newest,
        )

    @property
    def _savers(self) -> Collectives:
        """Return the collectives of those who write checkpoints together.

        Workers that are stacked are one process, and write one file.
        """
        if isinstance(self.collectives, StackedCollectives):
            return SoloCollectives()
        return self.collectives

    def _all_batches(self) -> Iterator[list[Batch]]:
        """Return the batches of the workers at this end, step by step.

        It is a joint batch where the workers go through all at once.
        """
        seed = self.config.seed
        samples = self.samples
        ranks = self.collectives.own_ranks
        indices = [self._indices(rank) for rank in ranks]
        loss_terms = samples.modality.loss_terms
        if loss_terms is not None:
            # The loss is a mean over tokens, of which workers have different numbers.
            # Their indices are made anew, since batches use up those above.
            of_all_workers = [
                self._indices(rank) for rank in range(self.config.num_workers)
            ]
            self._weights = token_weights(loss_terms, of_all_workers, ranks)
        if self._batched is not None:
            # (workers * batch,): stretch r of it is worker r's.
            joined = (
                torch.cat(step_indices) for step_indices in zip(*indices, strict=True)
            )
            # As if of rank 0: such samples are not augmented, so nothing is drawn by rank.
            batches = samples.training_batches(joined, seed, 0, self.step)
            return ([batch] for batch in batches)
        sources = [
            samples.training_batches(worker_indices, seed, rank, self.step)
            for rank, worker_indices in zip(ranks, indices, strict=True)
        ]
        return (list(batches) for batches in zip(*sources, strict=True))

    def _indices(self, rank: int) -> Iterator[Tensor]:
        """Return the indices that a worker trains on from this step on."""
        config = self.config
        samples = self.samples
        return worker_batches(
            config.seed,
            self.num_train,
            rank,
            config.num_workers,
            config.batch_size,
            steps=range(self.step, self.num_steps),
            shard=None if self._shards is None else self._shards[rank],
            lengths=samples.modality.lengths,
        )

    def take_step(self) -> None:
        """Take one step of the workers at this end."""
        config = self.config
        self.clock.switch("data")
        batches = self._ahead or next(self._batches)
        self.clock.switch("compute")
        # Before the step that it opens: a checkpoint after the last one has the state from before
        # it.
        if config.restart is not None and config.restart.is_due(
            self.step, self.num_steps
        ):
            if config.restart.everything_sent:
                self._send_everything()
            else:
                lose_state(config, config.restart, self.optimizer, self.num_steps)
        # The run's step and not the optimiser's, which begins anew in a synchronous tail.
        learning_rate = learning_rate_at(config, self.num_steps, self.step + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        losses = self._backward(batches)
        if losses.is_cuda:
            # The host waits for the GPU in a step with loss scaling; the GPU would wait for the
            # next batches after it.
            self.clock.switch("data")
            self._ahead = next(self._batches, None)
            self.clock.switch("compute")
        self.precision.step(self.optimizer)
        # (local workers, 2): a sum and a number, to which a skipped step adds nothing.
        self.losses += self.precision.tally(losses)
        self.step += 1

    def _backward(self, batches: list[Batch]) -> Tensor:
        """Do the forward and backward passes of the workers at this end.

        Returns their mean losses, of shape (local workers,).
        """
        if self._batched is not None:
            # One joint batch, of shape (local workers * batch, ...).
            return self._batched(*batches[0])
        weights: Sequence[float | None] = [None] * len(batches)
        if self._weights is not None:
            weights = next(self._weights)
        losses = [
            self.precision.both_passes(model, *batch, weight)
            for model, batch, weight in zip(
                self._trained, batches, weights, strict=True
            )
        ]
        return torch.stack(losses)
