"""An epoch of stage 1 from cached frame features, and with every frame through the frozen encoder again.

Run: pytest tests/benchmarks/test_stage1_cache.py --benchmark-only

The encoder is CLIP ViT-B/16 with random weights, as the paper's recipes have it: 16 tracklets, 8 frames a clip.
"""

import sys
import time

import numpy as np
import pytest
import torch

from csip import tables
from csip.config import ClipConfig, ExtractConfig, ModelConfig, RuntimeConfig, ValidateConfig, WalkersConfig
from csip.data.clips import ClipDataset, ClipRequest, label_of_pid, read_parts
from csip.data.sampling import restricted_random
from csip.ingest.benchmarks.importing import import_benchmark
from csip.models.checkpoints import encoder_digest, load_checkpoint
from csip.training import optim
from csip.training.features import cache_features, read_features
from csip.training.losses import contrastive_pair
from csip.training.pretrain import initialise
from csip.training.stage1 import draw_clips
from csip.types import Output

CLIPS = 16


@pytest.fixture(scope="module")
def training(tmp_path_factory, run):
    """A network, its training clips and their cached features."""
    out = Output(str(tmp_path_factory.mktemp("store")), "run-1")
    tables.prepare_store(out.store)
    runtime = RuntimeConfig(device="cpu", encode_batch=64)
    walkers = WalkersConfig(people=4, twins=0, cameras=4, passes=2, frames=8, missing_frames=0)
    snapshot = run(import_benchmark(out, "walkers:", ExtractConfig(walkers=walkers), runtime))[1].value
    model = ModelConfig(image_weights="none")
    checkpoint = run(initialise(out, snapshot, ClipConfig(), model, ValidateConfig(), 0))[1].value
    begun = time.perf_counter()
    features = run(cache_features(out, checkpoint, snapshot, runtime))[1].value
    seconds = time.perf_counter() - begun
    network, header = load_checkpoint(checkpoint)
    network.eval()
    parts = read_parts(snapshot, "train")
    dataset = ClipDataset(snapshot, parts, header.spec.clip, label_of_pid(parts))
    cached = read_features(features, network, dataset, encoder_digest(network, header.spec))
    return network, dataset, cached, seconds


def epoch(network, dataset, cached, optimizer):
    """One step on one clip a tracklet; without `cached` the clips' frames are read, decoded and encoded."""
    clips = draw_clips(dataset, cached, np.arange(CLIPS), np.random.default_rng(1))
    return step(network, optimizer, clips, clips.v_bar)


def epoch_on_the_fly(network, dataset, cached, optimizer):
    clips = draw_clips(dataset, cached, np.arange(CLIPS), np.random.default_rng(1))
    rng = np.random.default_rng(1)
    drawn = [restricted_random(len(one), dataset.clip.frames, rng) for one in cached]
    requests = [ClipRequest(i, tuple(at.tolist()), augment=False, seed=0) for i, at in enumerate(drawn)]
    crops = dataset.make_batch(requests).crops
    with torch.inference_mode():
        v_bar = network.frame_features(crops.flatten(0, 1)).unflatten(0, crops.shape[:2]).mean(dim=1)
    return step(network, optimizer, clips, v_bar.clone())


def step(network, optimizer, clips, v_bar):
    network.skeleton_encoder.train()
    torch.manual_seed(0)
    loss = contrastive_pair(v_bar, network.skeleton_encoder(clips.skeleton, clips.frame_mask)[1], clips.label)
    optimizer.step(loss)
    return float(loss.detach())


def test_ratio(benchmark, training, capsys):
    network, dataset, cached, caching = training
    seconds = {"with the cache": [], "without": []}
    losses = {}

    def both():
        for name, run_epoch in zip(seconds, (epoch, epoch_on_the_fly), strict=True):
            optimizer = optim.Adam(
                network.skeleton_encoder.parameters(), weight_decay=0, device="cpu", precision="float32"
            )
            optimizer.set_rate(0.0)  # the same weights for both
            begun = time.perf_counter()
            losses[name] = run_epoch(network, dataset, cached, optimizer)
            seconds[name].append(time.perf_counter() - begun)

    benchmark.pedantic(both, rounds=3, warmup_rounds=1)
    # The same clips, drawn by the same generator, give the same loss.
    assert losses["with the cache"] == pytest.approx(losses["without"], rel=1e-4)
    median = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    told = ", ".join(f"{name} {s:.2f} s" for name, s in median.items())
    ratio = median["without"] / median["with the cache"]
    frames = sum(len(one) for one in cached)
    with capsys.disabled():
        sys.stdout.write(
            f"\nan epoch of {CLIPS} clips of 8 frames: {told}, ratio {ratio:.1f}; "
            f"filling the cache once: {caching:.1f} s for {frames} frames\n"
        )
