"""The networks: what a spec calls each, and the module that has the function of that name which builds it."""

NETWORKS = {
    "mlp": "small_networks",
    "small_cnn": "small_networks",
    "resnet50": "torchvision_networks",
    "densenet121": "torchvision_networks",
    "shufflenet_v2": "torchvision_networks",
    "small_densenet": "torchvision_networks",
    "small_shufflenet": "torchvision_networks",
    "resnet50_v2": "pre_activation",
    "wide_resnet": "pre_activation",
    "transformer": "transformer",
    "gpt": "transformer",
}
"""Each function takes a sample's shape, the number of classes, and its own options, with types that are checked."""
