"""What a step of each method must be worth in a job: its step time over that of DDP.

Step times are modelled from what each row of an experiment sent (report/speed/job.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from cser_bench.harness.measures.steps import link_models
from cser_bench.report.advice.measured import Efficiency, nearest
from cser_bench.report.advice.runs import Method
from cser_bench.report.speed.job import (
    Sending,
    TrainingJob,
    ddp_seconds,
    method_seconds,
)
from cser_bench.report.speed.needed import needed_efficiency
from cser_bench.report.wording import NONE

DDP_LABEL = "DDP (fp32)"
FP16_HOOK_LABEL = "DDP + fp16 hook"

HOOK_TRAFFIC = 0.5
"""Traffic share of DDP's fp16 hook: two bytes for four."""


@dataclass(frozen=True)
class MethodInJob:
    """A method at a setting, in a job.

    Attributes:
        traffic: what a worker's link carries, as a share of DDP's in fp32.
        seconds: of a step, modelled, without encoding.
        hook_seconds, ddp_seconds: of a step of DDP with its fp16 hook, and in fp32.
        efficiency: measured nearest to the job; None where none is.
        method: as it was run; None of DDP, and of its hook where that was not run.
    """

    label: str
    setting: str
    traffic: float
    seconds: float
    hook_seconds: float
    ddp_seconds: float
    efficiency: Efficiency | None = None
    method: Method | None = None

    @property
    def over_hook(self) -> float:
        """The efficiency needed to tie with DDP's fp16 hook."""
        return needed_efficiency(self.seconds, self.hook_seconds)

    @property
    def over_ddp(self) -> float:
        """The efficiency needed to tie with DDP in fp32."""
        return needed_efficiency(self.seconds, self.ddp_seconds)

    @property
    def key(self) -> str:
        """What no other line has."""
        if self.method is None:
            return self.label
        return self.method.key

    @property
    def name(self) -> str:
        """The method with its setting."""
        if self.setting == NONE:
            return self.label
        return f"{self.label}: {self.setting}"

    @property
    def is_ddp(self) -> bool:
        """Whether it is DDP in fp32, which others are compared with."""
        return self.label == DDP_LABEL

    @property
    def is_heavy(self) -> bool:
        """Whether a link of a method carries more than with DDP's fp16 hook."""
        # Rounded, as a half that was counted in bits may differ in its last digits.
        return not self.is_ddp and round(self.traffic, 3) > HOOK_TRAFFIC


def traffic_share(sendings: Sequence[Sending], num_workers: int) -> float:
    """Return what a worker's link carries, as a share of what it carries with DDP in fp32."""
    # Models a step, on average over steps.
    sent = gathered = to_neighbours = 0.0
    for sending in sendings:
        models = sending.models * sending.share_of_steps
        sent += models
        if sending.collective == "all_gather":
            gathered += models
        if sending.collective == "exchange":
            to_neighbours += models
    # DDP all-reduces one model a step.
    everything = link_models(1.0, 0.0, 0.0, num_workers)
    return link_models(sent, gathered, to_neighbours, num_workers) / everything


def methods_in_job(
    job: TrainingJob,
    methods: Sequence[Method],
    efficiencies: Sequence[Efficiency],
    names: Mapping[str, str] = MappingProxyType({}),
) -> list[MethodInJob]:
    """Return DDP, its fp16 hook and methods, the one whose steps may be worth least first.

    Args:
        names: as in `nearest`.
    """
    # Four bytes a number in fp32, two with the hook.
    ddp = ddp_seconds(job, 4)
    hook = ddp_seconds(job, 2)
    lines = [MethodInJob(DDP_LABEL, NONE, 1.0, ddp, hook, ddp)]
    if not any(method.is_fp16_hook for method in methods):
        lines.append(MethodInJob(FP16_HOOK_LABEL, NONE, HOOK_TRAFFIC, hook, hook, ddp))
    for method in methods:
        setting = method.setting
        seconds = method_seconds(job, method.sendings)
        # The hook's buckets are sent during the backward pass, other methods' messages after it.
        if method.is_fp16_hook:
            setting = NONE
            seconds = hook
        line = MethodInJob(
            label=method.label,
            setting=setting,
            traffic=traffic_share(method.sendings, job.num_workers),
            seconds=seconds,
            hook_seconds=hook,
            ddp_seconds=ddp,
            efficiency=nearest(efficiencies, method.key, job, names),
            method=method,
        )
        lines.append(line)
    return sorted(lines, key=lambda line: (line.over_hook, line.label, line.setting))
