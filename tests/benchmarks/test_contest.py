from benchmarks.contest import Contestant, contest, quiet_environment


def test_a_contestant_that_has_ended_is_absent_and_the_contest_goes_on():
    """As one that finds no memory is."""
    contestant = Contestant("short-lived", "nothing", "false", {}, quiet_environment(1))
    assert contestant.absent == "failed: the process ended with code 1"
    contestant.absent = None
    assert contest(lambda: [contestant], 2, "a table") == [contestant]  # asked, and closed
    assert contestant.absent == "failed: the process ended with code 1"
    assert not contestant.measured
