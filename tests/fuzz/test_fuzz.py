# SPDX-License-Identifier: MIT
"""A minute of fuzzing of each end of the rings; ``make fuzz`` does more of the same."""

import pytest

from tests.fuzz.harness import HARNESSES, HERE, Run, build, missing

SECONDS = 60


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> None:
    if reason := missing(tmp_path_factory.mktemp("fuzz")):
        pytest.skip(reason)


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 3 + 300)  # building is in it
@pytest.mark.usefixtures("fuzzer")
@pytest.mark.parametrize("name", HARNESSES)
def test_a_minute_finds_nothing(name: str) -> None:
    """No stray access, no undefined behaviour, no hang, and what each harness says must hold, holds."""
    harness = HARNESSES[name]
    run = Run(harness, build(harness), SECONDS)
    try:
        run.wait(SECONDS * 3)
    finally:
        run.process.kill()
        run.process.wait()
    if crash := run.crash():
        pytest.fail(crash, pytrace=False)
    print(run.pulse)
    assert run.pulse.runs > 1000, run.output
    assert run.pulse.edges > LEAST_EDGES[name], "the corpus no longer reaches what it reached: has the script changed?"


#: Edges that the committed corpus alone reaches are more than these.
LEAST_EDGES = {"back": 600, "front": 500}


def test_the_corpus_is_small() -> None:
    for name in HARNESSES:
        files = list((HERE / "corpus" / name).iterdir())
        assert 5 <= len(files) <= 30, name
        assert all(path.stat().st_size <= 512 for path in files), name
