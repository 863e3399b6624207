import pytest

from csip.evaluation.average import summarise


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
