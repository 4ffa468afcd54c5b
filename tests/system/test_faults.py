"""Random faults in what a run left: nothing serves a wrong row, and the next run heals.

Faults fall on the files of a finished run, on a run that is killed, and on one whose disk is full;
the engine is this process or Ray, the store a folder or S3.
"""

import os
import random
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from faults import FAULTS, KINDS, Scene, Shell, flip

STAGES = {
    "prediction": {},
    "gradient": {},
    "kernel_regression": {},
    "label_issues": {},
    "similarity": {},
    "freeshap": {"rounds": 6, "units_per_round": 1},
}


def made(tmp_path_factory: Any, write_config: Any, bucket: Any = None, **raw: Any) -> Scene:
    """A scene of models, gradients and values."""
    folder = tmp_path_factory.mktemp("faults")
    return Scene.made(folder, write_config(folder, stages=STAGES, **raw), bucket)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: Any, write_config: Any) -> Iterator[Scene]:
    """A run in its process, over a store in its folder."""
    scene = made(tmp_path_factory, write_config)
    yield scene
    scene.shell.close()


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory: Any, write_config: Any) -> Iterator[Scene]:
    """A run on Ray."""
    scene = made(tmp_path_factory, write_config, ray={"engine": "ray"})
    yield scene
    scene.shell.close()


@pytest.fixture(scope="module")
def in_s3(tmp_path_factory: Any, write_config: Any, s3: None) -> Iterator[Scene]:
    """A run over a store in S3."""
    import boto3

    bucket = boto3.resource("s3").create_bucket(Bucket="faults")
    scene = made(tmp_path_factory, write_config, bucket, store="s3://faults/store")
    yield scene
    scene.shell.close()


def seeds(n: int, quick: int = 0) -> list[Any]:
    """Seeds, of which all but the first few are slow together."""
    return [pytest.param(seed, marks=[pytest.mark.slow] * (seed >= quick)) for seed in range(n)]


def hurt(scene: Scene, draw: random.Random, seed: int) -> str:
    """Does one fault to a whole run; says which."""
    scene.restore()
    done = FAULTS[sorted(FAULTS)[seed % len(FAULTS)]](scene, draw)
    scene.push()
    return done


def check(scene: Scene, draw: random.Random, done: object) -> None:
    """No question gets a wrong answer now; after another run every one gets the right one.

    An object store answers for its bytes, of which a run that has nothing to do reads none: what
    still is damaged there is told to whoever reads it, with the advice that is followed here.
    """
    names = list(scene.questions())
    before = [scene.wrong(name, is_healed=False) for name in draw.sample(names, 6)]
    assert not any(before), (done, before)
    whole = [name for name in names if not name.startswith("view ")]
    for is_last in (scene.bucket is None, True):
        stopped = scene.heal()
        assert stopped is None, (done, stopped)
        after = list(filter(None, (scene.wrong(name, is_healed=True) for name in whole)))
        if after and not is_last:
            assert all("assay verify RUN --repair" in told for told in after), (done, after)
            assert scene.shell("verify", scene.run, "--repair").code == 0
        else:
            break
    assert not after, (done, after)


@pytest.mark.parametrize("seed", seeds(104, quick=2))
def test_a_fault_serves_no_wrong_row_and_heals(scene: Scene, seed: int) -> None:
    draw = random.Random(seed)
    check(scene, draw, hurt(scene, draw, seed))


@pytest.mark.parametrize("seed", seeds(24))
def test_a_fault_in_s3_serves_no_wrong_row_and_heals(in_s3: Scene, seed: int) -> None:
    draw = random.Random(100 + seed)
    check(in_s3, draw, hurt(in_s3, draw, seed))


@pytest.mark.ray
@pytest.mark.parametrize("seed", seeds(24))
def test_a_fault_beneath_ray_serves_no_wrong_row_and_heals(on_ray: Scene, seed: int) -> None:
    draw = random.Random(200 + seed)
    check(on_ray, draw, hurt(on_ray, draw, seed))


@pytest.mark.parametrize("seed", seeds(24))
def test_a_kill_after_a_fault_heals(scene: Scene, start: Any, seed: int) -> None:
    draw = random.Random(300 + seed)
    done = hurt(scene, draw, seed), scene.forget(draw)
    with start("run", scene.config, ASSAY_MAPS=str(scene.maps)) as process:
        time.sleep(draw.uniform(1, 8))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    check(scene, draw, done)


@pytest.mark.parametrize("seed", seeds(24))
def test_a_full_disk_is_told_and_heals(scene: Scene, seed: int) -> None:
    draw = random.Random(400 + seed)
    scene.restore()
    done = scene.forget(draw)
    shell = Shell(draw.choice([300, 3000, 20_000]), ASSAY_MAPS=str(scene.maps))
    said = shell("run", scene.config)
    shell.close()
    assert said.code == 0 or (said.code == 1 and not said.exception), (done, said)
    check(scene, draw, done)


@pytest.mark.parametrize("seed", seeds(200, quick=2))
def test_a_flipped_bit_has_no_effect_or_is_told(scene: Scene, seed: int) -> None:
    draw = random.Random(1000 + seed)
    scene.restore()
    check(scene, draw, flip(scene, draw, KINDS[seed % len(KINDS)]))
