"""The twenty-five questions, each with what answers it, what would change that, and what fills it where runs lack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from report.answers import beside, error, losses, networks, rules, set_ups, settings, speeds, splits, tasks
from report.answers.answer import Answer, Question
from report.answers.evidence import Evidence

STUDIES = "make studies"
SPEEDUPS = "make speedups"
LONG = "make reproduce-long"


@dataclass(frozen=True)
class Asked:
    """A question and what answers it."""

    question: Question
    answer: Callable[[Evidence], Answer]


def _asked(number: int, words: str, answer: Callable[[Evidence], Answer], changes: str, command: str) -> Asked:
    return Asked(Question(number, words, changes, command), answer)


def _study(*names: str) -> str:
    return f'{STUDIES} STUDIES="{" ".join(names)}"'


ASKED = (
    _asked(
        1,
        "Which accuracies are reached, on ResNet-50 and ImageNet above all, and is anything lost?",
        losses.is_there_a_loss,
        "Another network, task or length: the loss depends on models sent and on steps, not on the ratio alone.",
        "make reproduce-imagenet DATA=FOLDER",
    ),
    _asked(
        2,
        "Faster than what: is the baseline overlapped, through which library, in which precision?",
        speeds.what_is_the_baseline,
        "A baseline that does not overlap, or NCCL in place of gloo on a network where gloo is the bottleneck.",
        SPEEDUPS,
    ),
    _asked(
        3,
        "Why eight machines with a GPU each, and what of eight GPUs in one machine, or of two machines with four?",
        speeds.other_topologies,
        "Slower links inside the machine than NVLink, or a slower link between them.",
        SPEEDUPS,
    ),
    _asked(
        4,
        "Below which bandwidth does it pay, and do older methods not do as well there?",
        speeds.when_it_pays,
        "More compute a step moves every bound down in proportion; a larger network moves it up.",
        SPEEDUPS,
    ),
    _asked(
        5,
        "How much faster is it than QSparse-local-SGD and EF-SGD, and not only than SGD?",
        speeds.over_older_methods,
        "Top-k is all-gathered: on a link it costs (n - 1) / 2 times an all-reduce and more with more workers.",
        f"{SPEEDUPS} and {LONG}",
    ),
    _asked(
        6,
        'What has to be true of the cluster for "4.5x" and "10x"?',
        speeds.what_the_headlines_ask,
        "Another baseline, or a faster GPU: less compute a step makes the factor easier to reach.",
        SPEEDUPS,
    ),
    _asked(
        7,
        "Does it save money, where a machine with eight GPUs is one node as a machine with one is?",
        speeds.does_it_save_money,
        "Other prices.",
        SPEEDUPS,
    ),
    _asked(
        8,
        "What accuracy does a bit buy where the network is not over-parametrised?",
        set_ups.over_widths,
        "More models sent, where less is lost at every width.",
        _study("two_level", "width_8", "width_128"),
    ),
    _asked(
        9,
        "Do other kinds of network, as DenseNet and ShuffleNet, behave alike?",
        networks.over_networks,
        "Depth and batch norm, which a perceptron does not have.",
        _study("two_level", "network_cnn", "network_densenet", "network_shufflenet"),
    ),
    _asked(
        10,
        "And another task, as translation by a Transformer?",
        tasks.another_task,
        "A larger network, or more training: here scores are far from the best known.",
        tasks.command_of(tasks.TASKS),
    ),
    _asked(
        11,
        "Are both levels of CSER needed: what of H = 1, C1 = 0, C2 = 0?",
        splits.are_both_levels_needed,
        "More models sent make all of these differences smaller.",
        _study("two_level"),
    ),
    _asked(
        12,
        "How should H, R1 and R2 share a budget?",
        splits.how_a_budget_is_shared,
        "A rate tuned at each point, or another budget.",
        _study("two_level"),
    ),
    _asked(
        13,
        "Is the setting with the least training loss the one with the best accuracy, and which rule picked?",
        settings.is_least_loss_best,
        "A network that fits its training data exactly, where training loss says little.",
        "make tune",
    ),
    _asked(
        14,
        "What does tuning cost, as one more compressor is one more knob?",
        settings.what_tuning_costs,
        "A wider grid, or a margin other than 0.2 points.",
        "make tune",
    ),
    _asked(
        15,
        "Why should error reset help against error feedback?",
        rules.why_error_reset_helps,
        "More models sent, or rates tuned for each pair.",
        _study("rules"),
    ),
    _asked(
        16,
        "Is the error ever reset to zero, or only slowly averaged?",
        error.is_the_error_ever_zero,
        "R1 = 1, where every reset is a whole average.",
        _study("two_level"),
    ),
    _asked(
        17,
        "Which other compressors work: top-k, random-k, quantisers, sign?",
        rules.do_other_compressors_work,
        "Equal load on a link in place of equal payload.",
        _study("rules"),
    ),
    _asked(
        18,
        "What if workers hold different kinds of data?",
        set_ups.over_skews,
        "More models sent: workers that meet more often drift less apart.",
        _study("two_level", "skew_class_shards", "skew_dirichlet_0.1", "skew_dirichlet_1", "skew_dirichlet_10"),
    ),
    _asked(
        19,
        "How many workers does it stand?",
        set_ups.over_workers,
        "More samples for each worker, or more steps between meetings.",
        _study("two_level", *(f"workers_{n}" for n in (2, 4, 16, 32)), *(f"weak_scaling_{n}" for n in (2, 4, 16))),
    ),
    _asked(
        20,
        "Which learning rate, as the theory asks for small ones?",
        settings.which_learning_rate,
        "Another schedule or momentum.",
        "make tune",
    ),
    _asked(
        21,
        "Does momentum help M-CSER beyond CSER?",
        settings.does_momentum_help,
        "A finer search for rates, or another ratio.",
        _study("momentum"),
    ),
    _asked(
        22,
        "When are ratios of 256 to 1024 needed at all?",
        speeds.which_ratio_is_needed,
        "Messages that are sent less often, or a network with fewer parameters for its compute.",
        SPEEDUPS,
    ),
    _asked(
        23,
        "How do PowerSGD, CHOCO-SGD, DeepSqueeze, decentralised SGD and other relatives compare?",
        beside.relatives,
        "Topologies with a larger spectral gap.",
        _study("relatives"),
    ),
    _asked(
        24,
        "Is the method as it was released the method as it is written?",
        beside.released,
        "Longer runs, or its compressor, which draws a block in each tensor and was not switched here.",
        _study("released"),
    ),
    _asked(
        25,
        "Would plain local SGD, or one average at the end, do as well for the same bits?",
        losses.what_anyone_could_do,
        "Fewer models sent than one or two per epoch, or AdamW as the local step (question 10).",
        LONG,
    ),
)
