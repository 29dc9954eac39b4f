"""The example under Open MPI, without an argument. `nox -s mpi` runs this."""

import launched

MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe"]


def test_two_processes_have_the_history_of_one():
    printed = launched.run(*MPIRUN, "-n", "2", *launched.PYTHON)
    launched.assert_same_history(launched.summary(printed), processes=2)


def test_one_process_of_mpirun_is_alone():
    printed = launched.run(*MPIRUN, "-n", "1", *launched.PYTHON)
    assert launched.summary(printed) == launched.alone()
