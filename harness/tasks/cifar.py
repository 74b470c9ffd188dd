"""Images of torchvision's releases of CIFAR, verified, as tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision import datasets

from cser_bench.harness.tasks import DataError
from cser_bench.harness.tasks.samples import Batch


def is_there(release: type[datasets.CIFAR10], root: Path) -> bool:
    """Say whether the folder has the release, extracted or as its archive."""
    return (
        Path(root, release.base_folder).is_dir()
        or Path(root, release.filename).is_file()
    )


def read_split(
    release: type[datasets.CIFAR10], root: Path, split: str, name: str, fetch: bool
) -> Batch:
    """Read images, bytes of shape (n, 3, 32, 32), and labels, int64 of shape (n,).

    Args:
        split: "train" or "test".
        name: of the data set, for messages.
        fetch: whether what is not in the folder is fetched into it.

    Raises:
        DataError: the folder holds no undamaged release.
    """
    try:
        # Into the user's own folder nothing is fetched, but an archive that lies there is
        # extracted.
        download = fetch or (root / release.filename).is_file()
        dataset = release(str(root), train=split == "train", download=download)
    except (RuntimeError, OSError, EOFError) as error:
        raise DataError(
            f"{name} is not at hand: {root} holds no undamaged release ({error}); put the folder "
            f"{release.base_folder}/ or {release.filename} from {release.url} there, or name the "
            "folder that has it with DATA=FOLDER"
        ) from None
    # torchvision has (n, 32, 32, 3).
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(dataset.targets)
