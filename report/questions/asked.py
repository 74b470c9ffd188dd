"""The list of the questions: what was asked, which function answers, and which command fills what is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from report.frame import JUDGED
from report.questions import losses, networks, speed, studies, tuning
from report.questions.evidence import Answer, Evidence

LONG_RUN, SPEEDUPS, TUNE = "make reproduce-long", "make speedups", "make tune"
JUDGED_RUN = f"make reproduce EXPERIMENT={JUDGED}"
STUDIES = 'make studies STUDIES="{}"'


@dataclass(frozen=True)
class Question:
    """`command` makes the runs that the answer needs."""

    number: int
    asked: str
    answer: Callable[[Evidence], Answer | None]
    command: str


_ASKED = """\
Which accuracies are reached, on ResNet-50 above all, and is anything lost?
Faster than what: is the baseline overlapped, and in which precision?
Why eight machines with a GPU each, and not two with four or one with eight?
Below which bandwidth does it pay, and do older methods not do as well there?
How much faster is it than QSparse-local-SGD and EF-SGD?
What has to be true of the cluster for "4.5x" and "10x"?
Does it save money, where a node costs as much with one GPU as with eight?
What does a bit buy where the network is not over-parametrised?
Do other networks, as DenseNet and ShuffleNet, behave alike?
And another task, as translation by a Transformer?
Are both levels of CSER needed: what of H = 1, C1 = 0, C2 = 0?
How should H, R1 and R2 share a budget?
Is the setting with the least training loss the most accurate one?
What does tuning cost, as one more compressor is one more knob?
Why should error reset help against error feedback?
Is the error ever reset to zero, or only slowly averaged?
Which other compressors work: top-k, random-k, quantisers, sign?
What if workers hold different kinds of data?
How many workers does it stand?
Which learning rate, as the theory asks for small ones?
Does momentum help M-CSER beyond CSER?
When are ratios of 256 to 1024 needed at all?
How do PowerSGD, CHOCO-SGD, DeepSqueeze, D-PSGD and DiLoCo compare?
Is the method as it was released the method as it is written?
Would plain local SGD, or one average at the end, do as well for the same bits?"""

_ANSWERED = (
    (losses.what_is_lost, JUDGED_RUN),
    (speed.which_baseline, SPEEDUPS),
    (speed.which_layout, SPEEDUPS),
    (speed.which_bandwidth, SPEEDUPS),
    (speed.over_older_methods, SPEEDUPS),
    (speed.what_headlines_ask, SPEEDUPS),
    (speed.does_it_save_money, SPEEDUPS),
    (studies.over_width, STUDIES.format("two_level width_8 width_128")),
    (networks.other_networks, STUDIES.format("two_level network_cnn network_densenet network_shufflenet")),
    (losses.other_tasks, "make reproduce EXPERIMENT=kjv_es"),
    (studies.are_both_levels_needed, STUDIES.format("two_level")),
    (studies.how_to_share_a_budget, STUDIES.format("two_level")),
    (tuning.is_least_loss_best, TUNE),
    (tuning.what_tuning_costs, TUNE),
    (studies.why_resets_help, STUDIES.format("rules")),
    (studies.is_the_error_ever_zero, STUDIES.format("two_level")),
    (studies.which_compressors_work, STUDIES.format("rules")),
    (studies.over_skew, STUDIES.format("two_level skew_class_shards")),
    (studies.over_workers, STUDIES.format("two_level workers_2 workers_32 weak_scaling_2 weak_scaling_16")),
    (tuning.which_learning_rate, TUNE),
    (studies.does_momentum_help, STUDIES.format("momentum")),
    (speed.which_ratio_is_needed, SPEEDUPS),
    (losses.the_relatives, LONG_RUN),
    (studies.released_or_written, STUDIES.format("released")),
    (losses.would_local_sgd_do, JUDGED_RUN),
)

QUESTIONS = tuple(
    Question(number, asked, answer, command)
    for number, (asked, (answer, command)) in enumerate(zip(_ASKED.split("\n"), _ANSWERED, strict=True), 1)
)
