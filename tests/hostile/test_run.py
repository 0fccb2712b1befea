"""The long run's judgement: whatever is not as promised is told."""

from tests.hostile.decoders import Measured
from tests.hostile.load import Job, Memory, Outcome
from tests.hostile.run import JOBS_FOR_FLAT, MB, faults, growth
from tests.hostile.verdicts import Verdict

ASKED = [Job(1, "image_embedding", None), Job(2, "image_embedding", None)]
MEASURED = {
    1: Measured(Verdict("picture", is_final=True), 0.1, 1),
    2: Measured(Verdict("decode_error", is_final=True), 0.1, 1),
}


def outcome(**codes: str) -> Outcome:
    found = {int(name[1:]): code for name, code in codes.items()}
    return Outcome(codes=found, pid_kept=True, exit_code=0)


def test_a_run_as_promised_has_no_faults() -> None:
    assert faults(ASKED, MEASURED, outcome(_1="picture", _2="decode_error")) == []


def test_another_end_than_alone_and_no_end_at_all_are_faults() -> None:
    found = faults(ASKED, MEASURED, outcome(_1="internal"))

    assert len(found) == 2
    assert "internal" in found[0]
    assert "no end" in found[1]


def test_a_file_whose_end_depends_on_the_machine_may_end_otherwise() -> None:
    measured = {**MEASURED, 2: Measured(Verdict("out_of_memory", is_final=False), 0.1, 1)}

    assert faults(ASKED, measured, outcome(_1="picture", _2="picture")) == []


def test_a_wrong_vector_a_logged_error_and_a_lost_process_are_faults() -> None:
    bad = outcome(_1="picture", _2="decode_error")
    bad.unlike, bad.errors, bad.pid_kept, bad.exit_code = ["jpeg 4: cosine 0.5"], ["oh"], False, -9

    assert len(faults(ASKED, MEASURED, bad)) == 4


def test_growing_memory_is_a_fault_of_a_run_long_enough_to_tell() -> None:
    long = [Job(number, "image_embedding", None) for number in range(JOBS_FOR_FLAT)]
    grown = Outcome(codes=dict.fromkeys(range(JOBS_FOR_FLAT), "picture"), pid_kept=True)
    grown.exit_code = 0
    grown.memory = [Memory(done, (500 + done) * MB, 0) for done in range(JOBS_FOR_FLAT)]

    assert growth(grown.memory)[1] > 2 * growth(grown.memory)[0]
    assert any("grew" in each for each in faults(long, {}, grown))
    grown.memory = [Memory(done, 500 * MB, 0) for done in range(JOBS_FOR_FLAT)]
    assert faults(long, {}, grown) == []
