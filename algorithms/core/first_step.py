"""The checks of the first step, in full: gradients, parameters and fields of all workers."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from cser_bench.algorithms.core.agreement import LOADED, check_in_step, digest_of
from cser_bench.algorithms.core.collectives import Collectives, StackedCollectives
from cser_bench.algorithms.core.flat import FlatBuffers, dense, integers
from cser_bench.algorithms.core.parameters import check_parameters
from cser_bench.algorithms.core.traffic import Purpose
from cser_bench.algorithms.core.warn import warn_script

# Names of what the workers compare, a number for each tensor.
BACKWARD = "gradients, as the backward pass left them"
GRADIENTS = "gradients, as step() found them"
START = "parameters, when the optimiser was made"
NOW = "parameters, at the first step"
STEPS = "steps done"
FIELDS = "digest of the fields"


class FirstStep:
    """The checks of the first step, and what they need noted before it.

    Make it once all workers hold the same parameters.

    Args:
        flats: parameters and gradients of each dtype.
        averaged: whether the method's own backward pass averages gradients, which then may be equal
            on all workers.
    """

    was_loaded = False
    """Whether a state was loaded since. Then changed parameters are expected, and may differ between
    workers."""

    def __init__(
        self, flats: Sequence[FlatBuffers], collectives: Collectives, averaged: bool
    ) -> None:
        self._flats = flats
        self._collectives = collectives
        self._tensors = [tensor for flat in flats for tensor in flat.tensors]
        self._own = torch.zeros(
            len(self._tensors), dtype=torch.int64, device=flats[0].parameters.device
        )
        """Bit sum of each gradient, as the backward pass left it on this worker."""
        self._start = self._sums(flat.parameters for flat in flats)
        is_watched = not averaged and not isinstance(collectives, StackedCollectives)
        self._silent: set[int] = set()
        """Numbers of watched parameters that no backward pass has reached yet."""
        self._hooks = []
        for number, tensor in enumerate(self._tensors):
            if is_watched and tensor.requires_grad:
                self._silent.add(number)
                hook = partial(self._note, number)
                handle = tensor.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
                self._hooks.append(handle)

    def _sums(self, vectors: Iterable[Tensor]) -> Tensor:
        """Return bit sums of shape (local workers, tensors), dtype by dtype."""
        pairs = zip(self._flats, vectors, strict=True)
        return torch.cat([flat.bit_sums(vector) for flat, vector in pairs], dim=1)

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _note(self, number: int, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._silent.discard(number)
        self._own[number] = integers(dense(parameter.grad)).sum()

    def check(
        self,
        model: nn.Module | None,
        may_differ: bool,
        num_steps: int,
        fields: Mapping[str, object],
    ) -> bool:
        """Return whether any worker's parameters changed since the start; warn of missing gradients.

        Args:
            may_differ: whether workers' parameters may differ, once a state was loaded.
            num_steps: steps that this worker's state has done.
            fields: what `in_step` returns.

        Raises:
            RuntimeError: the model has other parameters by now or had none when the optimiser was
                made, or its gradients are averaged already, or workers went on from states or
                models that do not belong together.
            ValueError: workers differ in `fields`.
        """
        check_parameters(model, self._tensors)
        first = self._flats[0].parameters
        if first.is_meta:
            raise RuntimeError(
                "the model was on the meta device when the optimiser was made, so this trains "
                "nothing; make the optimiser after to_empty() and the initialisation"
            )
        # In torch's fake mode there are no numbers to compare.
        if type(first) is not Tensor:
            return False
        self._warn_of_missing_gradients()
        fields = {**fields, LOADED: self.was_loaded}
        sums = self._everyones_sums(num_steps, fields)
        self._check_sums(sums, may_differ, fields)
        # Parameters at the start against parameters now, on any worker.
        return not self.was_loaded and not torch.equal(sums[START], sums[NOW])

    def _warn_of_missing_gradients(self) -> None:
        missing = []
        for number in sorted(self._silent):
            # A script may have written the gradient itself, without a backward pass.
            gradient = self._tensors[number].grad
            if gradient is None or not gradient.any():
                missing.append(str(number))
        if not any(flat.gradients.any() for flat in self._flats):
            which = "no parameter has a gradient"
        elif missing:
            which = f"parameters {', '.join(missing)} have no gradient"
        else:
            return
        warn_script(
            f"{which} at the optimiser's first step; where the model got other ones since it "
            "was made (a new head, to_empty, load_state_dict with assign=True), make the "
            "optimiser afterwards"
        )

    def _everyones_sums(
        self, num_steps: int, fields: Mapping[str, object]
    ) -> dict[str, Tensor]:
        """Return what is compared, by its name, each of shape (workers, tensors)."""
        gradients = self._sums(flat.gradients for flat in self._flats)
        # Signed, as int64 is: without a sign half of all digests would not fit.
        digest = int.from_bytes(digest_of(fields), signed=True)
        own = {
            BACKWARD: torch.where(self._tell_apart(), self._own, gradients),
            GRADIENTS: gradients,
            START: self._start,
            NOW: self._sums(flat.parameters for flat in self._flats),
            STEPS: torch.full_like(gradients, num_steps),
            FIELDS: torch.full_like(gradients, digest),
        }
        # One message for all six: the first step waits for the others once.
        sums = torch.stack(list(own.values()), dim=1)  # (local workers, 6, tensors)
        # Stacked workers are all here already.
        if len(sums) < self._collectives.world_size:
            sums = self._collectives.all_gather(sums, Purpose.CONTROL)
        return dict(zip(own, sums.unbind(1), strict=True))

    def _tell_apart(self) -> Tensor:
        """Return whose gradients, if equal to another worker's, tell of an average: (local workers, 1).

        All zeros do not, as of a worker without a batch. Neither does an overflow, which clipping
        makes NaN everywhere.
        """
        largest = [
            torch.linalg.vector_norm(flat.gradients, torch.inf, dim=1, keepdim=True)
            for flat in self._flats
        ]
        # Infinity and NaN stay in a sum.
        sizes = torch.stack([each.double() for each in largest]).sum(0)
        return sizes.isfinite() & (sizes > 0)

    def _refuse_averaged(self, sums: Mapping[str, Tensor]) -> None:
        """Raise RuntimeError where gradients of several workers were averaged already."""
        ranks = _averaged(sums[BACKWARD], sums[GRADIENTS])
        if len(ranks) == self._collectives.world_size:
            raise RuntimeError(
                "every worker has the same gradients, though the backward pass gave each its own: "
                "they are averaged in full before this optimiser sees them, so that nothing is "
                "saved; take the DistributedDataParallel off, or call "
                "ddp.register_comm_hook(None, algorithms.noop_hook) (see "
                "docs/in-your-own-script.md)"
            )
        if ranks:
            raise RuntimeError(
                f"ranks {', '.join(map(str, ranks))} have the same gradients, though the backward "
                "pass gave each its own: they are averaged among these before this optimiser sees "
                "them, as by a DistributedDataParallel inside a node, so that each would count as "
                "a worker; give collectives= the group of this process's peers on other nodes, or "
                "take the DistributedDataParallel off"
            )

    def _check_sums(
        self, sums: Mapping[str, Tensor], may_differ: bool, fields: Mapping[str, object]
    ) -> None:
        """Raise where workers differ in what must be equal, or are equal in what must differ."""
        equal = {key: bool((rows == rows[0]).all()) for key, rows in sums.items()}
        if self._hooks:
            self._refuse_averaged(sums)
        if not equal[STEPS]:
            raise RuntimeError(
                f"the workers have done {sums[STEPS][:, 0].tolist()} steps; each must load the "
                "state that it saved itself"
            )
        if not equal[FIELDS]:
            check_in_step(self._collectives, fields)
        if self.was_loaded and not may_differ and not equal[NOW]:
            raise RuntimeError(
                "the workers' parameters differ, which this method keeps equal; load the same "
                "model on all workers, or call optimizer.reanchor() on all, which sends worker 0's"
            )


def _averaged(backward: Tensor, now: Tensor) -> list[int]:
    """Return ranks whose gradients are equal now, though a backward pass gave each its own, or none.

    Args:
        backward, now: sums of gradients after the backward pass and in `step()`, of shape
            (workers, tensors).
    """
    ranks_with: dict[tuple[int, ...], list[int]] = {}
    for rank, row in enumerate(now.tolist()):
        ranks_with.setdefault(tuple(row), []).append(rank)
    for ranks in ranks_with.values():
        own = backward[ranks]
        # Sums that differed after the backward pass, and are equal now, were averaged by someone.
        if not torch.equal(own, own[:1].expand_as(own)):
            return ranks
    return []
