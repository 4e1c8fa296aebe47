"""Progress: plain lines where there is no terminal, a live bar where there is one."""

import os
import pty
import subprocess
import sys

from gradlogp.show import progress


def test_plain_lines_tell_what_is_left(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 11.0, 12.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.bar("learning") as update:
        update(1, 100)
        update(50, 100, "loss 3")
        update(51, 100)
        update(100, 100)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "learning: 50/100 in 11 s, 11 s left, loss 3",
        "learning: 100/100 in 20 s",
    ]


def test_quiet(capsys):
    with progress.bar("learning", quiet=True) as update:
        update(100, 100)
    assert capsys.readouterr() == ("", "")


def test_live_bar_in_a_terminal():
    program = (
        "from gradlogp.show import bar\nwith bar('learning') as u:\n u(1, 4)\n u(4, 4, 'done')"
    )
    leader, follower = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", program], stderr=follower, stdout=subprocess.PIPE, check=False
    )
    os.close(follower)
    shown = os.read(leader, 65536).decode()
    os.close(leader)
    assert (done.returncode, done.stdout) == (0, b"")
    assert "learning" in shown
    assert "4/4" in shown
