"""The networks: what a spec calls each, and the module whose function of that name builds it."""

NETWORKS = {
    "mlp": "small_networks",
    "small_cnn": "small_networks",
    "small_densenet": "small_networks",
    "small_shufflenet": "small_networks",
    "resnet50": "resnets",
    "resnet50_v2": "resnets",
    "wide_resnet": "resnets",
    "transformer": "transformer",
    "gpt": "transformer",
}
"""Each function takes a sample's shape, the number of classes, and its own options, with types that
are checked."""
