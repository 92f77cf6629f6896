"""Logs of runs: how long they get, and what a person sees of them."""

from vshift.sweep.logs import LARGEST, excerpt, log_path, open_log, trim


def test_a_log_keeps_its_end(bench):
    bench.seeds, bench.behaviours = 1, {"s seed 0": [f"chatter:{LARGEST + 5}", "done"]}
    bench.sweep()
    path = log_path(bench.runs / "s" / "seed-0")
    assert path.stat().st_size > LARGEST
    with open_log(path, "next") as log:
        log.write(b"more\n")
    assert path.stat().st_size < LARGEST
    text = path.read_text()
    assert text.startswith("--- the beginning was cut off\n")
    assert text.endswith("next\nmore\n")


def test_a_writer_keeps_appending_to_a_log_that_is_cut(tmp_path):
    path = tmp_path / "a.log"
    with open_log(path, "one") as log:
        log.write(b"y\n" * LARGEST)
        trim(path)
        log.write(b"last\n")
    assert path.stat().st_size < LARGEST
    assert path.read_bytes().endswith(b"y\nlast\n")
    assert b"\0" not in path.read_bytes()


def test_an_excerpt_is_the_last_attempts_error(tmp_path):
    path = tmp_path / "a.log"
    path.write_text("--- one\nerror: old\n--- two\nepoch 1\nerror: new\n  and \x1b[31mmore\n")
    assert excerpt(path) == "error: new\n  and \\x1b[31mmore"
    path.write_text("--- one\n" + "".join(f"line {n}\n" for n in range(50)))
    assert excerpt(path).splitlines()[-1] == "line 49"
    assert len(excerpt(path).splitlines()) == 12
    path.write_text("--- one\n")
    assert excerpt(path) == "it printed nothing"
    assert "No such file" in excerpt(tmp_path / "none")
