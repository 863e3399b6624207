"""Benchmarks through the command line: checked, built, trained on, scored, and the result handed to others."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from csip import tables

from .test_flows import flow_runs, task_runs

pytestmark = pytest.mark.slow

MARS = ("benchmark.skeletons=files", "evaluate.bootstrap=50")
SKELETONS = (
    *("model.width=16", "model.joint_layers=1", "model.joint_heads=2", "model.graph_positions=4"),
    *("skeleton.epochs=2", "skeleton.batch_windows=8", "skeleton.seeds=2", "evaluate.ranks=1,2", "runtime.device=cpu"),
)


def told(done):
    assert done.code == 0, done.err
    return json.loads(done.out)


@pytest.fixture(scope="module")
def mars(make_folder, tmp_path_factory):
    """A tiny copy of MARS with side-car files, and a store for it; tests use it one after the other."""
    root = tmp_path_factory.mktemp("mars") / "MARS"
    make_folder("mars")(root, skeletons="skeleton_3d_hmr2.0")
    return SimpleNamespace(root=root, store=root.parent / "store")


@pytest.fixture(scope="module")
def mars_trained(mars, settings, fresh_command):
    """The tiny MARS built and trained on."""
    words = ("--store", mars.store, "--json", *settings.small, *settings.sets(MARS))
    built = told(fresh_command("build-skeletons", f"mars:{mars.root}", *words))
    trained = told(fresh_command("train-csip", "mars", "--snapshot", built["snapshot"], *words))
    (one,) = trained["trained"]
    return SimpleNamespace(root=mars.root, store=mars.store, built=built, told=one, mean=trained["mean"], words=words)


def test_a_check_counts_what_is_there_and_writes_nothing(command, mars, settings):
    before = sorted(path for path in mars.root.rglob("*"))
    counts = told(command("check", f"mars:{mars.root}", "--json", *settings.sets(MARS)))
    assert counts["data set"] == "mars"
    assert (counts["train_people"], counts["cameras"], counts["joints"]) == (3, 2, "h36m17 from side-car files")
    assert sorted(path for path in mars.root.rglob("*")) == before
    assert not mars.store.exists()
    assert "Nothing wrong" in command("check", f"mars:{mars.root}", *settings.sets(MARS)).out


def test_a_check_of_what_is_wrong_lists_it(command, make_folder, tmp_path):
    make_folder("mars")(tmp_path / "MARS")
    (tmp_path / "MARS" / "bbox_test" / "0002" / "0002C1T0001F001.jpg").unlink()
    done = command("check", f"mars:{tmp_path / 'MARS'}", "--set", "benchmark.skeletons=none")
    assert (done.code, done.out) == (1, "")
    assert "found 1 things that are wrong" in done.err
    assert "0002C1T0001F001.jpg" in done.err


def test_a_check_opens_videos(command, street, tmp_path):
    assert told(command("check", street, "--json"))["videos"] == 1
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    done = command("check", street, tmp_path / "broken.mp4")
    assert (done.code, done.out) == (1, "")
    assert "found 1 of 2 files that cannot be read as videos, and 0 folders that cannot" in done.err


def test_a_benchmark_is_scored_by_its_own_rule_and_says_which(mars_trained):
    one = mars_trained.told
    assert (one["protocol"], one["split"]) == ("mars", "0")
    assert set(one["scores"]) == {"trained", "untrained", "hsv-histogram"}
    for figures in one["scores"].values():
        # All five queries are valid among eleven gallery tracklets, themselves included; junk is none of them.
        assert (figures["num_queries"], figures["num_valid_queries"], figures["num_gallery"]) == (5, 5, 11)
        assert figures["low/mean_ap"] <= figures["mean_ap"] <= figures["high/mean_ap"]
    words = one["described"]["trained"]
    assert "the queries stand in the gallery too" in words
    assert "5 of 5 queries are valid" in words
    assert mars_trained.mean == []


def test_without_queries_in_the_gallery_some_cannot_match_and_the_result_says_so(command, mars_trained, settings):
    words = ("--set", "evaluate.query_in_gallery=false")
    done = command(
        *("evaluate-csip", mars_trained.told["checkpoint"]["path"], "--snapshot", mars_trained.built["snapshot"]),
        *(*mars_trained.words, *words),
    )
    (one,) = told(done)["evaluated"]
    figures = one["scores"]["trained"]
    assert (figures["num_queries"], figures["num_valid_queries"], figures["num_gallery"]) == (5, 3, 6)
    assert "3 of 5 queries are valid" in one["described"]["trained"]
    assert "not the protocol's own rule" in one["described"]["trained"]


def test_an_unchanged_folder_is_not_imported_twice(command, mars_trained):
    versions = {name: tables.current(str(mars_trained.store), name).version for name in mars_trained.built["tables"]}
    again = told(command("build-skeletons", f"mars:{mars_trained.root}", *mars_trained.words))
    assert again["snapshot"] == mars_trained.built["snapshot"]
    assert again["counts"] == mars_trained.built["counts"]
    assert {name: tables.current(str(mars_trained.store), name).version for name in versions} == versions


def test_dense_and_restricted_stand_side_by_side(command, mars_trained):
    done = command(
        *("evaluate-csip", mars_trained.told["checkpoint"]["path"], "--snapshot", mars_trained.built["snapshot"]),
        *(*mars_trained.words, "--set", "embed.sampling=both"),
    )
    (one,) = told(done)["evaluated"]
    assert set(one["scores"]) == {"trained", "trained dense", "hsv-histogram"}
    assert one["scores"]["trained"]["mean_ap"] == mars_trained.told["scores"]["trained"]["mean_ap"]
    assert "first frame of each of 4 chunks" in one["described"]["trained"]
    assert "all consecutive clips of 4 frames" in one["described"]["trained dense"]


def test_a_result_goes_through_a_file_that_anybody_can_score(command, mars_trained, tmp_path):
    words = ("export", mars_trained.told["run_id"], tmp_path / "ours.npz", "--store", mars_trained.store)
    assert told(command(*words, "--json"))["gallery"] == 11
    assert f"csip score {tmp_path / 'ours.npz'}" in command(*words).out
    scored = told(command("score", tmp_path / "ours.npz", "--json", "--set", "evaluate.bootstrap=50"))
    for name in ("mean_ap", "mean_ap_trapezoidal", "mean_inp", "rank-1", "low/mean_ap", "num_valid_queries"):
        assert scored["figures"][name] == mars_trained.told["scores"]["trained"][name], name
    shown = command("score", tmp_path / "ours.npz", "--protocol", "mars")
    assert shown.code == 0
    assert "5 of 5" in shown.out


def test_a_model_is_scored_without_skeletons_but_not_trained(command, mars_trained, settings, tmp_path):
    none = ("--store", tmp_path / "store", "--json", *settings.small, *settings.sets(("benchmark.skeletons=none",)))
    built = told(command("build-skeletons", f"mars:{mars_trained.root}", *none))
    assert built["counts"]["joints"] == "none"
    store = str(tmp_path / "store")
    assert tables.count(tables.current(store, "skeletons")) == 0
    words = ("--snapshot", built["snapshot"], *none)
    scored = told(command("evaluate-csip", mars_trained.told["checkpoint"]["path"], *words))["evaluated"][0]
    # The same pictures under the same weights.
    assert scored["scores"]["trained"] == mars_trained.told["scores"]["trained"] | {
        name: value for name, value in scored["scores"]["trained"].items() if name.startswith(("low/", "high/"))
    }
    done = command("train-csip", "mars", *words)
    assert (done.code, done.out) == (1, "")
    assert "Training needs skeletons" in done.err


def test_a_network_is_not_scored_on_people_it_was_trained_on(command, make_folder, settings, tmp_path):
    make_folder("ilids")(tmp_path / "iLIDS")
    words = ("--store", tmp_path / "store", "--json", *settings.small, *settings.sets(("benchmark.skeletons=none",)))
    built = told(command("build-skeletons", f"ilids:{tmp_path / 'iLIDS'}", *words))
    assert built["counts"]["protocols"] == "ilids-test-first (10 splits), ilids-train-first (10 splits)"
    done = command("evaluate-csip", tmp_path / "none.safetensors", "--snapshot", built["snapshot"], *words)
    assert (done.code, done.out) == (1, "")
    assert "found no such file" in done.err


def test_every_split_is_a_training_and_their_mean_says_how_many_there_are(
    fresh_command, make_folder, settings, tmp_path
):
    make_folder("ilids")(tmp_path / "iLIDS", ls_set=((1, 2, 3, 4), (2, 4, 1, 3)), skeletons="skeleton_3d_hmr2.0")
    words = ("--store", tmp_path / "store", "--json", *settings.small)
    built = told(fresh_command("build-skeletons", f"ilids:{tmp_path / 'iLIDS'}", *words))
    sets = settings.sets(("data.split=all", "clip.unit_frames=4", "stage1.drop_last=false"))
    done = told(fresh_command("train-csip", "ilids", "--snapshot", built["snapshot"], *words, *sets))
    assert [one["split"] for one in done["trained"]] == ["0", "1"]
    for one in done["trained"]:
        assert "alone; the literature reports the mean of 10 splits" in one["described"]["trained"]
    (mean,) = done["mean"]
    own = [one["scores"]["trained"]["mean_ap"] for one in done["trained"]]
    assert mean["scores"]["trained"]["mean_ap"]["mean"] == pytest.approx(sum(own) / 2)
    assert mean["scores"]["trained"]["mean_ap"]["std"] == pytest.approx(abs(own[0] - own[1]) / 2**0.5)
    for text in mean["described"].values():
        assert "over 2 splits: 0, 1, where the literature has 10" in text
        assert "alone" not in text
    # Each encoder in its own words.
    assert "first frame of each of 4 chunks" in mean["described"]["trained"]
    assert "all frames" in mean["described"]["hsv-histogram"]
    # A checkpoint of one split has seen the other's test people, or has not been told of them at all.
    checkpoint = done["trained"][0]["checkpoint"]["path"]
    other = settings.sets(("data.protocol=ilids-test-first", "data.split=0"))
    refused = fresh_command("evaluate-csip", checkpoint, "--snapshot", built["snapshot"], *words, *other)
    assert refused.code == 1
    assert "test people that the checkpoint was trained on (under ilids-train-first, split 0)" in refused.err


def test_skeletons_alone_are_trained_on_and_scored_in_both_directions(command, server, make_folder, settings, tmp_path):
    make_folder("biwi")(tmp_path / "BIWI")
    words = ("--store", tmp_path / "store", "--json", *settings.sets(SKELETONS))
    built = told(command("build-skeletons", f"biwi:{tmp_path / 'BIWI'}", *words))
    assert built["counts"]["protocols"] == "biwi-s, biwi-w"
    done = told(command("train-csip", "biwi", "--snapshot", built["snapshot"], *words))
    assert [one["protocol"] for one in done["trained"]] == ["biwi-s", "biwi-w"] * 2
    assert [mean["protocol"] for mean in done["mean"]] == ["biwi-s", "biwi-w"]
    for mean in done["mean"]:
        assert set(mean["scores"]) == {"trained", "untrained"}
        assert "over 2 seeds" in mean["described"]["trained"]
        assert "windows of 6 consecutive skeletons" in mean["described"]["trained"]
    # Each task of the flow has a name of its own, and so has what it shows.
    trained = flow_runs(server, tmp_path / "store")[1]
    names = [name for name, _ in task_runs(server, trained, 21)]
    assert len(names) == len(set(names)) == 21
    assert {"train_skeletons (seed 0)", "embed_skeletons: trained (seed 1, biwi-w)", "average"} <= set(names)
    # One network a seed, asked in both directions.
    assert len({one["checkpoint"]["sha256"] for one in done["trained"]}) == 2
    for one in done["trained"]:
        assert "train_skeletons" in one["losses"]
        assert (one["scores"]["trained"]["num_queries"]) > 0
    checkpoint = done["trained"][0]["checkpoint"]["path"]
    sets = settings.sets(("data.protocol=biwi-w",))
    (again,) = told(command("evaluate-csip", checkpoint, "--snapshot", built["snapshot"], *words, *sets))["evaluated"]
    assert again["scores"]["trained"] == done["trained"][1]["scores"]["trained"]
    # A page without pictures promises none, and the losses are all there.
    page = Path(done["trained"][0]["report"]["path"]).read_text(encoding="utf-8")
    assert "No tracklets to show." not in page
    assert "What queries found" not in page
    assert all(name in page for name in ("contrast", "reconstruction"))
    # The same command again does nothing and says how to walk back from the means.
    plain = (word for word in words if word != "--json")
    shown = command("train-csip", "biwi", "--snapshot", built["snapshot"], *plain)
    assert shown.code == 0, shown.err
    assert f"csip lineage {done['mean'][0]['run_id']} --store" in shown.out
    walked = command("lineage", done["mean"][0]["run_id"], "--store", tmp_path / "store")
    for stage in ("average", "train_skeletons", "initialise_skeletons", "import_benchmark"):
        assert f"by {stage} (run" in walked.out


def test_an_epoch_chosen_by_the_probes_is_chosen_by_each_directions_own(command, make_folder, settings, tmp_path):
    make_folder("ias")(tmp_path / "IAS")
    words = ("--store", tmp_path / "store", "--json", *settings.sets(SKELETONS))
    built = told(command("build-skeletons", f"ias:{tmp_path / 'IAS'}", *words))
    sets = settings.sets(("skeleton.select_on_probe=true", "skeleton.seeds=1", "skeleton.epochs=1"))
    done = told(command("train-csip", "ias", "--snapshot", built["snapshot"], *words, *sets))
    views = [run["inputs"]["snapshot"]["protocol"] for run in runs(tmp_path / "store", "train_skeletons")]
    assert views == ["ias-a", "ias-b"]
    for one in done["trained"]:
        assert "chosen by its scores on the test set" in one["described"]["trained"]


def runs(store, stage):
    found = tables.find_runs(str(store), f"stage = '{stage}'")
    return [{"inputs": run.inputs} for run in sorted(found, key=lambda run: run.started)]


def test_a_recipe_for_the_other_kind_of_snapshot_is_refused(command, mars_trained, make_folder, settings, tmp_path):
    words = ("--snapshot", mars_trained.built["snapshot"], *mars_trained.words)
    done = command("train-csip", "biwi", *words)
    assert (done.code, done.out) == (1, "")
    assert "Recipe biwi: trains on skeletons alone, but snapshot mars-" in done.err
    make_folder("ias")(tmp_path / "IAS")
    alone = ("--store", tmp_path / "store", "--json")
    built = told(command("build-skeletons", f"ias:{tmp_path / 'IAS'}", *alone))
    done = command("train-csip", "mars", "--snapshot", built["snapshot"], *alone, *settings.small)
    assert (done.code, done.out) == (1, "")
    assert "holds skeletons alone. Name one of the recipes for those: biwi, ias." in done.err


def test_a_file_that_cannot_be_written_is_said(command, mars_trained, tmp_path):
    (tmp_path / "taken").write_bytes(b"")
    for target in (tmp_path / "taken" / "ours.npz", tmp_path):
        done = command("export", mars_trained.told["run_id"], target, "--store", mars_trained.store)
        assert (done.code, done.out) == (1, "")
        assert "could not be written" in done.err
