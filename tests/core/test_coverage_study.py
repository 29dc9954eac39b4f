"""A small form of `nox -s coverage`: intervals contain the true value as often as they say."""

import coverage_study
import pytest

SETS, REPLICATES = 150, 200


@pytest.mark.parametrize("name", ["accuracy", "macro F1", "perplexity"])
def test_intervals_contain_the_true_value(name):
    above, below = coverage_study.covered(name, 100, SETS, REPLICATES)
    # 95 % are expected, with a standard deviation of 1.8 %.
    assert 0.89 <= 1 - above - below <= 0.993
    assert max(above, below) <= 0.08


def test_equal_models_are_seldom_found_to_differ():
    for share in coverage_study.false_alarms(100, None, SETS, REPLICATES).values():
        assert share <= 0.11
