"""What the pose model gets to see of videos: frames by segment, what is stored not again, and where a video ends."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from csip.errors import DecoderLostError, VideoError
from csip.ingest.plan import VideoPlan, cut_into_segments
from csip.ingest.reading import Ended, Opened, Piece, Rejected, read_videos
from csip.types import Frames, SourceVideo

VIDEO = SourceVideo("a" * 64, "/videos/a.mp4", "gate", 3.0)


class Decoding:
    """Gives the frames it was made with, one pixel each, and then what it was told to raise."""

    def __init__(self, frames, error=None):
        self.index, self.error, self.asked = frames, error, []

    def frames(self, video, *, batch, start, stride):
        self.asked.append((str(video.path), start, stride))
        index = [i for i in self.index if i >= start and i % stride == 0]
        for at in range(0, len(index), batch):
            some = np.array(index[at : at + batch], np.int64)
            yield Frames(np.full((len(some), 1, 1, 3), 7, np.uint8), some, some / 10)
        if self.error:
            raise self.error


def read(decoding, *, num_frames=30, seconds=1.0, stride=1, batch=4, detected=(), finished=None):
    """Read one video of ten frames a second; the steps, in words that can be compared."""
    info = SimpleNamespace(path=Path(VIDEO.path), num_frames=num_frames, fps=10.0)
    segments = cut_into_segments(num_frames, 10.0, seconds, stride)
    done = {n: SimpleNamespace(counts={"reason": reason}) for n, reason in detected}
    tracked = {} if finished is None else {0: finished}
    plan = VideoPlan(VIDEO, info, segments, done, tracked)
    steps = list(read_videos([VIDEO], lambda _: plan, decoding, stride=stride, batch=batch))
    assert isinstance(steps[0], Opened)
    return [told(step) for step in steps[1:]]


def told(step):
    if isinstance(step, Piece):
        return ("frames", step.segment.number, step.frames.frame_index.tolist())
    if isinstance(step, Ended):
        return ("ended", step.segment.number, step.seen, step.reason)
    assert isinstance(step, Rejected)
    return ("rejected", step.reason)


def frames_of(steps):
    out = {}
    for step in steps:
        if step[0] == "frames":
            out.setdefault(step[1], []).extend(step[2])
    return out


def test_no_piece_reaches_over_a_border_and_every_segment_ends():
    steps = read(Decoding(range(30)))
    assert frames_of(steps) == {0: list(range(10)), 1: list(range(10, 20)), 2: list(range(20, 30))}
    assert [step for step in steps if step[0] == "ended"] == [("ended", n, True, "") for n in range(3)]
    assert steps[2:5] == [("frames", 0, [8, 9]), ("ended", 0, True, ""), ("frames", 1, [10, 11])]


def test_what_is_stored_is_not_read_again():
    decoding = Decoding(range(30))
    steps = read(decoding, detected=[(0, ""), (1, "")])
    assert decoding.asked == [("/videos/a.mp4", 20, 1)]
    assert steps[:2] == [("ended", 0, False, ""), ("ended", 1, False, "")]
    assert frames_of(steps) == {2: list(range(20, 30))}
    assert read(decoding, detected=[(0, ""), (1, ""), (2, "")])[-1] == ("ended", 2, False, "")
    assert len(decoding.asked) == 1


def test_a_hole_in_what_is_stored_is_read_from_there_on():
    steps = read(Decoding(range(30)), detected=[(0, ""), (2, "")])
    assert frames_of(steps) == {1: list(range(10, 20)), 2: list(range(20, 30))}


def test_a_video_that_is_finished_is_opened_and_no_more():
    decoding = Decoding(range(30))
    assert read(decoding, finished=SimpleNamespace(stage="track_video")) == []
    assert decoding.asked == []


def test_with_a_stride_only_frames_that_it_hits_come():
    steps = read(Decoding(range(30)), stride=4)
    assert frames_of(steps) == {0: [0, 4, 8], 1: [12, 16, 20], 2: [24, 28]}


def test_a_video_that_breaks_off_ends_there_with_its_reason():
    steps = read(Decoding(range(13), VideoError("read 13 of 30 frames")))
    assert frames_of(steps) == {0: list(range(10)), 1: [10, 11, 12]}
    assert steps[-1] == ("ended", 1, True, "read 13 of 30 frames")
    # And one that was stored so is known to end there.
    decoding = Decoding(range(13))
    steps = read(decoding, detected=[(0, ""), (1, "read 13 of 30 frames")])
    assert steps == [("ended", 0, False, ""), ("ended", 1, False, "read 13 of 30 frames")]
    assert decoding.asked == []


def test_a_video_that_ends_early_without_a_word_says_so_all_the_same():
    assert read(Decoding(range(13)))[-1] == ("ended", 1, True, "/videos/a.mp4: ended before frame 20 of 30.")


@pytest.mark.parametrize("lost", [(8, 14), (8, 22), (0, 11)])
def test_a_hole_in_a_video_shifts_no_later_frame(lost):
    left = [i for i in range(30) if not lost[0] <= i < lost[1]]
    steps = read(Decoding(left))
    for number in range(3):
        assert frames_of(steps).get(number, []) == [i for i in left if i // 10 == number]
    assert [step[1] for step in steps if step[0] == "ended"] == [0, 1, 2]


def test_frames_beyond_the_announced_number_belong_to_the_last_segment():
    assert frames_of(read(Decoding(range(35))))[2] == list(range(20, 35))


@pytest.mark.parametrize("frames", [0, 5, 15])
def test_a_decoder_that_is_lost_rejects_the_video_however_far_it_came(frames):
    steps = read(Decoding(range(frames), DecoderLostError("the decoder hung")))
    assert steps[-1] == ("rejected", "the decoder hung")


def test_a_video_of_which_nothing_decodes_is_rejected():
    assert read(Decoding([], VideoError("none of it decodes"))) == [("rejected", "none of it decodes")]
    # Not so where some of it had been read in an earlier run.
    steps = read(Decoding([], VideoError("ends here")), detected=[(0, "")])
    assert steps == [("ended", 0, False, ""), ("ended", 1, True, "ends here")]


def test_a_rejected_video_stops_none_of_the_others():
    def plan(video):
        raise VideoError(f"{video.path}: no video")

    other = SourceVideo("b" * 64, "/videos/b.mp4", "gate", 1.0)
    steps = read_videos([VIDEO, other], plan, Decoding([]), stride=1, batch=4)
    assert [told(step) for step in steps] == [
        ("rejected", "/videos/a.mp4: no video"),
        ("rejected", "/videos/b.mp4: no video"),
    ]
