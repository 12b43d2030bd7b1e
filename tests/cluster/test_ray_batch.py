"""A batch job on two actors makes the files of the plain command, whoever is killed meanwhile."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.cluster.helpers import workers
from tests.helpers import ROOT

pytestmark = pytest.mark.ray

WORDS = "one two three four five six seven eight nine".split()
LINES, HANGS = 40, 180


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """A file of scripts of several lengths; one line cannot be spoken."""
    path = tmp_path_factory.mktemp("scripts") / "scripts.jsonl"
    lines = [
        {"id": f"n{number}", "text": f"[S1] Can you count? [S2] {' '.join(WORDS[: 3 + number % 5])}.", "seed": number}
        for number in range(LINES)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"id": "bad", "text": ""}\n')
    return path


def command(scripts, folder, *arguments):
    model = ["--model", "talker", "--quant", "int8", "--format", "flac"]
    return [sys.executable, "-m", "dia_engine", "batch", str(scripts), "-o", str(folder), *model, *arguments]


def run(*arguments):
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=HANGS)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.jsonl"}


def manifest(folder):
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    return sorted(lines, key=lambda line: line["id"])


@pytest.fixture(scope="module")
def plain(scripts, tmp_path_factory):
    """What the command makes without Ray."""
    folder = tmp_path_factory.mktemp("plain")
    done = run(scripts, folder)
    assert done.returncode == 1 and "1 failed" in done.stdout, done.stderr
    assert len(contents(folder)) == LINES
    return folder


def until_made(folder, count, job):
    """Wait until the manifest has `count` records, or the job has ended."""
    end = time.monotonic() + HANGS
    path = folder / "manifest.jsonl"
    while job.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < count):
        assert time.monotonic() < end
        time.sleep(0.005)


def test_two_actors_make_the_same_files_though_one_is_killed(cluster, scripts, plain, tmp_path):
    job = subprocess.Popen(
        command(scripts, tmp_path, "--ray", cluster, "--actors", "2"), cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    until_made(tmp_path, 3, job)
    os.kill(workers("ray::MapWorker")[0], signal.SIGKILL)
    _, errors = job.communicate(timeout=HANGS)
    assert job.returncode == 1, errors
    assert contents(tmp_path) == contents(plain) and manifest(tmp_path) == manifest(plain)


def test_a_job_whose_driver_is_killed_goes_on(cluster, scripts, plain, tmp_path):
    job = subprocess.Popen(
        command(scripts, tmp_path, "--ray", cluster, "--actors", "2", "-q"), cwd=ROOT, stderr=subprocess.DEVNULL
    )
    until_made(tmp_path, 10, job)
    job.kill()
    job.wait()
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.suffix == ".flac"}
    recorded = [record["file"] for record in manifest(tmp_path) if record["file"]]
    assert 0 < len(recorded) < LINES
    done = run(scripts, tmp_path, "--ray", cluster, "--actors", "2")
    assert done.returncode == 1, done.stderr
    assert f"{len(recorded)} more were there already" in done.stdout
    assert f": {LINES - len(recorded)} scripts, " in done.stdout
    assert contents(tmp_path) == contents(plain) and manifest(tmp_path) == manifest(plain)
    assert all((tmp_path / name).stat().st_mtime_ns == written[name] for name in recorded), "made twice"


def test_an_engine_that_cannot_be_loaded_is_one_line(cluster, scripts, tmp_path):
    (tmp_path / "codec.pth").write_bytes(b"no codec")
    done = run(scripts, tmp_path / "out", "--ray", cluster, "--codec", str(tmp_path / "codec.pth"))
    assert done.returncode == 2
    assert (
        done.stderr.splitlines()[-1].startswith("dia-engine: error: Ray ended the job: ") and "codec.pth" in done.stderr
    )


def test_an_address_where_no_cluster_is(scripts, tmp_path):
    done = run(scripts, tmp_path / "out", "--ray", "127.0.0.1:1")
    assert done.returncode == 2 and "--ray: no cluster answers at 127.0.0.1:1: Connection refused" in done.stderr
    assert "--ray must be the host:port" in run(scripts, tmp_path / "out", "--ray", "ray://127.0.0.1:1").stderr
