"""Makes the corpus of configs/digits.yaml: scikit-learn's digits, as a small network sees them.

    .venv/bin/python scripts/digits.py [FOLDER]      by default runs/data/digits

A network of 64, 32 and 10 numbers is trained on 1,297 of the 1,797 images of 8 x 8 pixels; the
features are its 32 hidden numbers. Writes train and test as `.parquet` (id, digit, image) with the
features in `.npy` beside. Needs scikit-learn: the extra `pictures`.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.datasets import load_digits

N_TRAIN = 1297
EPOCHS = 60


def main(folder: Path) -> None:
    """Trains the network and writes both parts."""
    torch.manual_seed(0)
    images, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x = torch.from_numpy((images[order] / 16).astype(np.float32))
    y = torch.from_numpy(digits[order].astype(np.int64))
    network = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(N_TRAIN).split(32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        hidden = network[1](network[0](x)).numpy()
        right = (network(x[N_TRAIN:]).argmax(1) == y[N_TRAIN:]).float().mean()
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", slice(N_TRAIN)), ("test", slice(N_TRAIN, None))):
        table = {
            "id": pa.array(order[part]),
            "digit": y[part].numpy(),
            "image": (x[part].numpy() * 16).astype(np.int64).tolist(),
        }
        pq.write_table(pa.table(table), folder / f"{name}.parquet")
        np.save(folder / f"{name}.npy", hidden[part])
    print(f"{folder}: {N_TRAIN} training images, {len(x) - N_TRAIN} queries, of which the network")
    print(f"gets {float(right):.3f} right")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/data/digits"))
