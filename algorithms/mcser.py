"""M-CSER: CSER on the Nesterov update.

Source: Xie et al., "CSER", NeurIPS 2020, the algorithm with momentum:

    m_i <- beta m_i + g_i;   p_i = eta (beta m_i + g_i);   then as CSER

The momentum is local and is not averaged. The paper's experiments, also where its tables say CSER,
are with momentum. With AdamW p_i is what that would subtract, its two moments are local likewise,
and `cser` and this are one.
Cost: as CSER. State: the momentum or the moments, and with block sparsifiers nothing else.
"""

from cser_bench.algorithms.cser import CSER


class MCSER(CSER):
    """M-CSER: CSER whose momentum is 0.9 by default, and must not be 0.

    Begin with `**MCSER.at_traffic(1 / 4, world_size=8)`.

    `at_traffic`: blocks, half of the traffic for each stage, as in table_cnn (R2 48, R1 3, H 16 at
    1/24), resnet_regime, fashion_mnist_long and the paper.

    Args: as `CSER`.
    """

    name = "mcser"
    without_momentum = CSER.name
