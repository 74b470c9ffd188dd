"""WMT 2014 English to German as Stanford's NMT group prepared it: 4,468,840 pairs, and newstest2014 to score.

The text is tokenised there; it is free for research (statmt.org/wmt14). Pairs of which one side is empty must be
removed from both files first; then say how many are left in `num_train`.
"""

from __future__ import annotations

from harness.tasks.parallel import ParallelText, TextFiles

TASK = ParallelText(
    num_train=4_468_840,
    num_test=2_737,
    source=TextFiles(
        train=("train.en", "train.de"),
        test=("newstest2014.en", "newstest2014.de"),
        where="the files are at nlp.stanford.edu/projects/nmt",
    ),
    vocabulary=37_000,
    positions=128,
)
