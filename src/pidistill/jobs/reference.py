"""`pidistill reference`: measure the statistics of images in the features of a network, for evaluate and compare."""

from __future__ import annotations

from pathlib import Path

from pidistill.core.errors import PidistillError
from pidistill.core.processes import choose_device
from pidistill.evaluation.references import make_reference, write_reference
from pidistill.files.datasets import open_images
from pidistill.files.folders import check_free
from pidistill.nets.features.base import fingerprint, load_features


def measure_reference(data: str, out: Path, *, features: str, keep: int, batch: int, device: str = "auto",
                      force: bool = False) -> str:
    """Write the statistics of a data set of images into an .npz; gives a line that describes them.

    data: `digits`, a folder, a .zip (EDM's data sets) or an .npz of images.
    features: the feature network, as `load_features` takes it.
    keep: images whose features are kept, for KID, precision and recall.
    batch: images at a time.
    force: what is there is replaced.
    """
    if out.suffix != ".npz":
        raise PidistillError(f"--out must end in .npz, got {out}")
    check_free(out, force)
    images = open_images(data)  # before a network is downloaded for it
    net = load_features(features).to(choose_device(device))
    statistics = make_reference(images, data, net, features, fingerprint(net), keep=keep, batch=batch)
    write_reference(out, statistics)
    kept = 0 if statistics.features is None else len(statistics.features)
    return (f"statistics of {statistics.num} images in {len(statistics.mean)} features of {features} in {out}; "
            f"features of {kept} kept")
