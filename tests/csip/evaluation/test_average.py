import pytest

from csip import tables
from csip.evaluation.average import average, summarise
from csip.evaluation.protocol import Rules, describe
from csip.protocols import BIWI_S, BIWI_W, ILIDS_TEST_FIRST, MARS
from csip.types import ResultsRef


def test_mean_and_sample_deviation_over_seeds():
    seeds = [{"a": {"mean_ap": value, "rank-1": 0.5}} for value in (0.2, 0.3, 0.7)]
    # Mean 1.2 / 3; squared distances .04, .01 and .09 over n - 1 = 2.
    found = summarise(seeds)["a"]
    assert found["mean_ap"] == pytest.approx({"mean": 0.4, "std": 0.07**0.5, "n": 3})
    assert found["rank-1"] == {"mean": 0.5, "std": 0.0, "n": 3}


def test_one_seed_has_no_deviation():
    assert summarise([{"a": {"mean_ap": 0.25}}]) == {"a": {"mean_ap": {"mean": 0.25, "std": 0.0, "n": 1}}}


def test_trainings_with_other_rows_are_refused():
    with pytest.raises(ValueError, match=r"got trainings with rows \[\['a'\], \['b'\]\], expected the same"):
        summarise([{"a": {"mean_ap": 0.1}}, {"b": {"mean_ap": 0.1}}])


def test_a_figure_that_one_training_lacks_is_summed_up_over_the_others():
    found = summarise([{"a": {"mean_ap": 0.1, "rank-1": 0.2}}, {"a": {"mean_ap": 0.3}}])["a"]
    assert found["rank-1"] == {"mean": 0.2, "std": 0.0, "n": 1}
    assert found["mean_ap"]["n"] == 2


def rows(run_id, protocol, split, figures, described):
    return [
        {
            "run_id": run_id,
            "protocol": protocol,
            "split": split,
            "encoder": encoder,
            "name": name,
            "value": value,
            "described": described,
            "encoder_digest": "d",
            "checkpoint_sha": "c" * 64,
        }
        for encoder, own in figures.items()
        for name, value in own.items()
    ]


@pytest.fixture
def averaged(run, out):
    """Write evaluations (protocol, split, encoder -> figures), average them; return rows by protocol, encoder, name."""

    def call(evaluations, over):
        rule = Rules(exclude_same_camera=True, query_in_gallery=False)
        refs = []
        for i, (protocol, split, figures) in enumerate(evaluations):
            described = describe(rule, protocol, split=split) + " 2 of 2 queries are valid."
            table = tables.upsert(
                out.store,
                "results",
                tables.from_rows("results", rows(f"evaluation-{i}", protocol, split, figures, described)),
            )
            refs.append(ResultsRef(table, f"evaluation-{i}"))
        outcome = run(average(out, tuple(refs), over))[1]
        found = tables.read(outcome.value.table, where=f"run_id = '{out.run_id}'").to_pylist()
        return {(row["protocol"], row["encoder"], row["name"]): row for row in found}

    return call


def test_the_mean_over_splits_says_which_and_how_many_there_are(averaged):
    found = averaged(
        [(ILIDS_TEST_FIRST, str(k), {"trained": {"mean_ap": value}}) for k, value in ((0, 0.2), (4, 0.4), (10, 0.9))],
        "splits",
    )
    mean = found[ILIDS_TEST_FIRST, "trained", "mean_ap"]
    assert mean["value"] == pytest.approx(0.5)
    # Squared distances .09, .01 and .16 over n - 1 = 2.
    assert found[ILIDS_TEST_FIRST, "trained", "std/mean_ap"]["value"] == pytest.approx(0.13**0.5)
    assert found[ILIDS_TEST_FIRST, "trained", "num_trainings"]["value"] == 3
    assert mean["split"] == "0,4,10"
    assert "over 3 splits: 0, 4, 10, where the literature has 10." in mean["described"]
    assert "alone" not in mean["described"]


def test_the_mean_of_intervals_ends_is_not_taken_for_an_interval(averaged):
    ends = {"low/mean_ap": 0.1, "high/mean_ap": 0.3, "confidence": 0.95}
    found = averaged([(MARS, "0", {"trained": {"mean_ap": 0.2} | ends}) for _ in range(2)], "seeds")
    assert {name for _, _, name in found} == {"mean_ap", "std/mean_ap", "num_trainings"}


@pytest.mark.parametrize(("second", "words"), [(2, "2 of 2 queries"), (1, "2 of 2, 1 of 2 queries")])
def test_the_words_give_every_different_count_of_valid_queries(averaged, second, words):
    found = averaged(
        [
            (ILIDS_TEST_FIRST, str(k), {"trained": {"mean_ap": 0.5, "num_queries": 2, "num_valid_queries": valid}})
            for k, valid in enumerate((2, second, 2))
        ],
        "splits",
    )
    assert f" {words} are valid. Mean and sample" in found[ILIDS_TEST_FIRST, "trained", "mean_ap"]["described"]


def test_protocols_are_averaged_each_by_itself(averaged):
    found = averaged(
        [
            (protocol, "0", {"trained": {"mean_ap": value}, "untrained": {"mean_ap": 0.1}})
            for protocol, value in ((BIWI_S, 0.2), (BIWI_W, 0.6), (BIWI_S, 0.4), (BIWI_W, 0.8))
        ],
        "seeds",
    )
    assert found[BIWI_S, "trained", "mean_ap"]["value"] == pytest.approx(0.3)
    assert found[BIWI_W, "trained", "mean_ap"]["value"] == pytest.approx(0.7)
    assert found[BIWI_W, "untrained", "std/mean_ap"]["value"] == 0
    words = found[BIWI_S, "trained", "mean_ap"]["described"]
    assert "standing still look for the same people walking" in words
    assert "over 2 seeds." in words
    assert "literature" not in words
