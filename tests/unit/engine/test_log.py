import json

from saccade.core import Clock
from saccade.engine.log import LOG, Recorder, rows


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
    lines = [json.dumps({"step": s, "loss": 1.0}) for s in range(5)]
    (tmp_path / LOG).write_text("\n".join(lines) + '\n{"step": 5, "lo')
    recorder = Recorder(tmp_path, 3, active=True)
    recorder.step(Clock(3, 10, 5), {"loss": 2.0}, 8, 0.0)
    recorder.close()
    assert [(r["step"], r["loss"]) for r in rows(tmp_path / LOG)] == [
        (0, 1),
        (1, 1),
        (2, 1),
        (3, 2),
    ]


def test_other_ranks_write_nothing(tmp_path):
    recorder = Recorder(tmp_path, 0, active=False)
    recorder.step(Clock(0, 10, 5), {"loss": 2.0}, 8, 0.0)
    recorder.close()
    assert list(tmp_path.iterdir()) == []


def test_a_report_holds_speed_and_waiting(tmp_path, capsys):
    recorder = Recorder(tmp_path, 0, active=True)
    recorder.step(Clock(0, 10, 5), {"loss": 2.0, "rankme": 7.0}, 8, 0.0)
    recorder.step(Clock(1, 10, 5), {"loss": 1.5, "rankme": 8.0}, 16, 0.0)
    recorder.close()
    last = rows(tmp_path / LOG)[-1]
    assert last["images_per_second"] > 0
    assert last["data_wait"] == 0
    assert "rank 8.00" in capsys.readouterr().err


def test_tensorboard_events_hold_the_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recorder = Recorder(tmp_path, 0, track=("tensorboard",), active=True)
    recorder.step(Clock(0, 10, 5), {"loss": 2.5}, 8, 0.0)
    recorder.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.value for e in events.Scalars("loss")] == [2.5]
