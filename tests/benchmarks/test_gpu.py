"""`benchmarks.gpu` without a GPU: what it plans, how it divides its time, and that a cut run goes on where it was."""

import json
import select
import signal
import subprocess
import sys
import time
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import first_audio, gpu, gpu_plan, gpu_report, setting, tokens_per_sec
from benchmarks.gpu_plan import PARTS, Measurement, plan
from benchmarks.journal import Journal
from benchmarks.memory import WorkingMemory
from benchmarks.setting import check_steps
from dia_engine.model.config import DecoderConfig, DiaConfig

BATCHES = ["batch 1", "batch 4", "batch 16", "batch 64"]


class Clock:
    """Seconds that pass only when someone works."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class FakeGPU:
    """Runs measurements of a fixed length; `dies_at` is the run that does not come back."""

    def __init__(self, clock, seconds, dies_at=None):
        self.clock, self.seconds, self.dies_at, self.ran = clock, seconds, dies_at, []

    def __call__(self, measurement, seconds):
        self.ran.append(measurement.name)
        if len(self.ran) == self.dies_at:
            raise KeyboardInterrupt
        self.clock.now += min(self.seconds, seconds)
        if measurement.json:
            measurement.json.write_text(json.dumps({"timeline": [], "name": measurement.name}))
        return gpu.Outcome("passed" if self.seconds <= seconds else "timed out")


def names(part, journal):
    return [measurement.name for measurement in plan(part, journal)]


def test_the_parts_are_in_order_and_every_name_is_its_own(tmp_path):
    assert list(PARTS) == ["correctness", "speed", "kernels", "tuning", "audio", "load"]
    for part in PARTS:
        planned = names(part, tmp_path / "j.jsonl")
        assert planned and len(set(planned)) == len(planned)
    assert names("speed", tmp_path / "j.jsonl") == ["kernels compiled", *BATCHES]
    for measurement in plan("speed", tmp_path / "j.jsonl")[1:]:
        assert {"int8", "nf4", "transformers"} <= set(measurement.command) and "nari" not in measurement.command
    with_nari = plan("speed", tmp_path / "j.jsonl", "/nari")[1].command
    assert with_nari[with_nari.index("nari") :] == ["nari", "--reference", "/nari"]


def test_switches_are_tried_both_ways_next_to_each_other(tmp_path):
    *planned, tilings = plan("tuning", tmp_path / "j.jsonl")
    assert tilings.name == "tilings"
    assert {"DIA_PDL"} <= {name for measurement in planned for name in measurement.environment}
    for one, other in zip(planned[::2], planned[1::2], strict=True):
        assert one.environment.keys() == other.environment.keys() and one.environment != other.environment
        assert one.command[one.command.index("--batch") + 1] == other.command[other.command.index("--batch") + 1]
    absent = gpu_plan.Switch("DIA_NO_SUCH_SWITCH", ("0", "1"), (1,))
    assert not absent.exists, "nothing in the kernels reads it"


def test_every_test_for_a_gpu_is_in_a_file_that_is_run(request):
    marked = {item.path for item in request.session.items if "gpu" in item.keywords}
    assert marked <= set(gpu_plan.gpu_test_files()) and len(gpu_plan.gpu_test_files()) > 3


def test_kernels_are_tested_in_float32_as_well(tmp_path):
    commands = {measurement.name: measurement.command for measurement in plan("correctness", tmp_path / "j.jsonl")}
    of_kernels = set(commands["kernels"])
    assert "gpu" not in of_kernels and {"tests/kernels/test_kernels.py", "tests/kernels/test_snake.py"} < of_kernels
    assert commands["test_runner"][-3:-1] == ["-m", "gpu"]


def test_steps_that_cannot_be_timed_are_refused():
    """Eight of them are one launch on a GPU, and the first launch is not timed; the first row is given."""
    config = DiaConfig(decoder=DecoderConfig(max_position_embeddings=512))
    on_gpu, on_cpu = (SimpleNamespace(config=config, device=torch.device(name)) for name in ("cuda", "cpu"))
    for steps in (8, 503):
        check_steps("--steps", steps, on_gpu)
    for steps in (2, 511):
        check_steps("--peer-steps", steps, on_cpu, untimed=1)
    for option, steps, engine, untimed, message in (
        ("--steps", 7, on_gpu, 0, "--steps must be at least 8 on this device, got 7"),
        ("--peer-steps", 8, on_gpu, 1, "--peer-steps must be at least 9 on this device, got 8"),
        ("--steps", 504, on_gpu, 0, "--steps must be at most 503 with a model of 512 rows, got 504"),
        ("--steps", 511, on_cpu, 0, "--steps must be at most 510 with a model of 512 rows, got 511"),
    ):
        with pytest.raises(ValueError, match=message):
            check_steps(option, steps, engine, untimed)


@pytest.mark.parametrize("part", ["speed", "tuning", "audio", "load"])
def test_the_commands_have_options_that_exist(part, tmp_path, monkeypatch):
    from benchmarks import compile_kernels, load, tilings

    every = (compile_kernels, tokens_per_sec, first_audio, load, tilings)
    modules = {f"benchmarks.{module.__name__.split('.')[-1]}": module for module in every}
    (tmp_path / "dia").mkdir()
    (tmp_path / "dia" / "model.py").touch()  # as a checkout of nari-labs/dia has
    monkeypatch.setattr(setting, "find_spec", lambda package: package)
    for measurement in plan(part, tmp_path / "j.jsonl", str(tmp_path)):
        assert measurement.command[:2] == [sys.executable, "-m"]
        monkeypatch.setattr(sys, "argv", measurement.command[2:])
        modules[measurement.command[2]]._arguments()


def test_a_part_has_8_minutes_and_all_have_25(tmp_path):
    clock = Clock()
    budget = gpu.Budget(total=25 * 60, part=8 * 60, clock=clock)
    run, journal = FakeGPU(clock, seconds=150), Journal(tmp_path / "j.jsonl")
    left = gpu.run_parts(list(PARTS), journal, budget=budget, run=run)
    assert clock.now <= 25 * 60 and left
    by_part = {part: [entry["status"] for entry in journal.entries(part)] for part in PARTS}
    assert by_part["speed"] == ["passed", "passed", "passed", "timed out"], "three of 150 s, and 30 s for the fourth"
    assert by_part["kernels"] == ["passed"] and len(by_part["tuning"]) <= 4
    assert left == [each for part in PARTS for each in plan(part, journal.path) if each in left]


def test_a_run_that_is_cut_keeps_what_it_has_and_the_next_goes_on(tmp_path):
    clock, journal = Clock(), Journal(tmp_path / "j.jsonl")
    first = FakeGPU(clock, seconds=1, dies_at=3)
    with pytest.raises(KeyboardInterrupt):
        gpu.run_parts(["speed", "audio"], journal, run=first)
    assert [entry["name"] for entry in journal.entries()] == ["kernels compiled", "batch 1"]
    with open(journal.path, "a") as file:
        file.write('{"part": "speed", "na')  # the power went in the middle of a line
    second = FakeGPU(clock, seconds=1)
    assert gpu.run_parts(["speed", "audio"], journal, run=second) == []
    assert second.ran == [*BATCHES[1:], *names("audio", journal.path)]
    third = FakeGPU(clock, seconds=1)
    assert gpu.run_parts(["speed", "audio"], journal, run=third) == [] and third.ran == []
    assert journal.entries("audio")[0]["report"] == {"name": "bfloat16"}, "without its timeline"
    assert not list(tmp_path.glob(".*")), "the benchmark's own file is gone"


def test_a_command_that_ran_out_of_time_keeps_what_it_had_measured(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    measured, cut = plan("load", journal.path)
    measured.json.write_text("{}")  # left by a run that was cut

    def run(measurement, seconds):
        if measurement == cut:
            measurement.json.write_text(json.dumps({"loads": [], "capacity": [{"slots": 1}]}))
        return gpu.Outcome("timed out", "its last lines")

    assert gpu.run_parts(["load"], journal, run=run) == []
    first, second = journal.entries("load")
    assert "report" not in first and first["output"] == second["output"] == "its last lines"
    assert second["report"] == {"loads": [], "capacity": [{"slots": 1}]} and not list(tmp_path.glob(".*"))


def test_what_failed_is_tried_again_and_what_does_not_fit_is_not(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    for name, status in (("batch 1", "failed"), ("batch 4", "timed out"), ("batch 16", "out of memory")):
        journal.append("speed", name, status)
    run = FakeGPU(Clock(), seconds=1)
    gpu.run_parts(["speed"], journal, run=run)
    assert run.ran == ["kernels compiled", "batch 1", "batch 4", "batch 64"]
    statuses = {entry["name"]: entry["status"] for entry in journal.entries("speed")}
    assert statuses.pop("batch 16") == "out of memory" and set(statuses.values()) == {"passed"}


def test_a_line_is_on_the_disk_when_append_returns(tmp_path):
    """Seen by a process that is killed right behind it."""
    code = (
        "import os, sys; from benchmarks.journal import Journal; "
        "Journal(sys.argv[1]).append('speed', 'batch 1', 'measured', value=1.5); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "j.jsonl")], cwd=gpu_plan.ROOT, check=False)
    assert Journal(tmp_path / "j.jsonl").entry("speed", "batch 1")["value"] == 1.5


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc to see processes")
@pytest.mark.parametrize("waits", [True, False])
def test_a_command_ends_with_its_children(waits):
    """Also those that it has left behind."""
    code = "import subprocess; child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True)"
    code += "; child.wait()" if waits else "; raise SystemExit(1)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    child = Path("/proc") / process.stdout.readline().strip() / "stat"
    assert child.exists()
    if not waits:
        process.wait()
    gpu._end(process)
    assert select.select([process.stdout], [], [], 30)[0], "the child lives, which holds the pipe"
    process.stdout.read()
    while child.exists():  # it has closed the pipe and is about to end
        with suppress(FileNotFoundError, ProcessLookupError):
            if child.read_text().split()[2] == "Z":
                break
        time.sleep(0.01)


def python(code, **environment):
    return Measurement("tuning", "x", [sys.executable, "-c", code], environment)


def test_how_a_command_ends_is_its_status():
    assert gpu.run_command(python("import time; time.sleep(600)"), 0.2).status == "timed out"
    assert gpu.run_command(python("1 / 0"), 60).status == "failed"
    code = "import os; assert os.environ.get('DIA_PDL') == '0'"
    assert gpu.run_command(python(code), 60).status == "failed"
    assert gpu.run_command(python(code, DIA_PDL="0"), 60).status == "passed"


def test_what_a_command_printed_last_is_shown_and_kept_if_it_failed(tmp_path, monkeypatch, capfd):
    code = "for number in range(100): print('line', number)\n1 / 0"
    monkeypatch.setattr(gpu, "plan", lambda part, journal, reference: [python(code), Measurement("tuning", "y", [])])
    outcomes = [gpu.run_command(python(code), 60), gpu.Outcome("passed", "not kept")]
    journal = Journal(tmp_path / "j.jsonl")
    gpu.run_parts(["tuning"], journal, run=lambda measurement, seconds: outcomes.pop(0))
    failed, passed = journal.entries("tuning")
    assert failed["output"].endswith("ZeroDivisionError: division by zero\n") and "line 99" in failed["output"]
    assert "line 9\n" not in failed["output"], "the last lines, not all"
    assert gpu._without_folders(f"File {gpu_plan.ROOT}/a.py") == "File ./a.py"
    assert "output" not in passed and "line 0\nline 1\n" in capfd.readouterr().out


def test_a_benchmark_goes_on_after_the_results_it_has(tmp_path, monkeypatch, capsys):
    """tokens_per_sec itself: a line each result, none measured twice, one table of all."""
    arguments = ["--model", "synthetic:tiny", "--device", "cpu", "--steps", "10", "--runs", "1", "--quant", "int8"]
    arguments += ["--journal", str(tmp_path / "j.jsonl"), "--label", "batch 1"]
    measured, original = [], tokens_per_sec._measure

    def stops_after(count):
        def measure(runner, *rest):
            if len(measured) == count:
                raise KeyboardInterrupt
            measured.append(runner.name)
            return original(runner, *rest)

        return measure

    monkeypatch.setattr(sys, "argv", ["tokens_per_sec", *arguments])
    monkeypatch.setattr(tokens_per_sec, "read_bandwidth", lambda: 5e9)
    monkeypatch.setattr(tokens_per_sec, "copy_bandwidth", lambda *_: 5e9)
    monkeypatch.setattr(tokens_per_sec, "_measure", stops_after(1))
    with pytest.raises(KeyboardInterrupt):
        tokens_per_sec.main()
    monkeypatch.setattr(tokens_per_sec, "_measure", stops_after(2))
    tokens_per_sec.main()
    assert measured == ["dia-engine", "dia-engine int8"]
    entries = Journal(tmp_path / "j.jsonl").entries("speed")
    assert [entry["name"] for entry in entries] == ["batch 1: dia-engine", "batch 1: dia-engine int8"]
    assert [len(entry["report"]["results"]) for entry in entries] == [1, 1]
    shown = capsys.readouterr().out
    assert "dia-engine int8" in shown and shown.count("1.00x faster") >= 1


def test_a_result_that_does_not_fit_is_a_line_and_the_next_is_measured(tmp_path):
    options = Namespace(json=None, journal=str(tmp_path / "j"), part="speed", label="batch 64", batch=64)
    record = tokens_per_sec.Record(options)
    record.out_of_memory("dia-engine", torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB\nmore"))
    assert record.earlier("dia-engine") == [] and record.earlier("dia-engine int8") is None
    options.journal = None
    with pytest.raises(torch.OutOfMemoryError):
        tokens_per_sec.Record(options).out_of_memory("dia-engine", torch.OutOfMemoryError("x"))


def test_nvidia_smi_is_asked_for_the_gpu_that_torch_uses(monkeypatch):
    """CUDA_VISIBLE_DEVICES=3 is torch's number 0, and nvidia-smi's number 3."""
    asked = []

    def run(command, **options):
        asked.append(command[command.index("-i") + 1])
        return SimpleNamespace(stdout="1980 MHz, 2619 MHz, 41, 120.00 W\n")

    monkeypatch.setattr(gpu_report.subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12ab-34"))
    assert gpu_report.current_clocks()["sm"] == "1980 MHz"
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace())
    gpu_report.current_clocks()
    assert asked == ["GPU-12ab-34", "0"]


def test_the_journal_of_a_relative_folder_is_found_by_commands_in_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu", "--parts", "kernels", "--results", "here"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "setting", lambda: {"gpu": "H100", "date": "2026-01-02"})
    monkeypatch.setattr(gpu, "current_clocks", dict)
    commands = []
    monkeypatch.setattr(
        gpu, "run_command", lambda measurement, _: commands.append(measurement) or gpu.Outcome("passed")
    )
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert gpu.main() == 0
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert commands[0].command[-1] == str(tmp_path / "here" / "h100-2026-01-02.jsonl")


def test_other_code_or_another_driver_gets_a_file_of_its_own(tmp_path):
    described = {"gpu": "NVIDIA H100 80GB HBM3", "code": "12345678", "driver": "570.1", "date": "2026-01-02"}
    path = gpu_report.journal_path(tmp_path, described)
    assert path.name == "nvidia-h100-80gb-hbm3-2026-01-02.jsonl"
    Journal(path).append("setting", "setting", "measured", **described)
    assert gpu_report.journal_path(tmp_path, {**described, "date": "2026-01-03"}) == path
    other = gpu_report.journal_path(tmp_path, {**described, "driver": "580.2"})
    assert other.name == "nvidia-h100-80gb-hbm3-2026-01-02-2.jsonl"


def test_the_table_shows_every_kind_of_line(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    journal.append(
        "setting", "setting", "measured", gpu="H100", driver="570.1", sm_clock_max="1980 MHz", torch="2.13.0"
    )
    journal.append("correctness", "test_kernels", "failed", seconds=61.0, clocks={"sm": "1755 MHz"})
    row = {"step_milliseconds": 1.25, "steps_per_second": 800.0, "times_real_time": 9.29, "roofline_percent": 84.0}
    journal.append("speed", "batch 1: dia-engine", "measured", report={"results": [{**row, "peak_percent": 75.0}]})
    journal.append("speed", "batch 64: dia-engine", "out of memory", error="x")
    journal.append(
        "kernels", "head, kernel", "measured", us_per_call=11.5, gigabytes_per_second=3300.0, roofline_percent=110.0,
        peak_percent=98.0,
    )  # fmt: skip
    audio = {
        "first_audio_seconds": {"p50": 0.045, "p95": 0.05},
        "stream": {"underruns": 0},
        "whole": [{"name": "transformers eager", "first_audio_seconds": 20.7}],
    }
    journal.append("audio", "bfloat16", "passed", seconds=30.0, report=audio)
    row = {
        "system": "dia-engine", "slots": 16, "rate": 4.5, "requests": 64, "kept": 63, "times_real_time": 21.25,
        "first_audio_seconds": {"p50": 0.061, "p95": 0.09, "p99": 0.1},
    }  # fmt: skip
    journal.append("load", "int8", "passed", seconds=30.0, report={"loads": [row]})
    tilings = [
        {"slots": 1, "quant": "none", "projection": "head", "chosen": 12.5, "candidates": [[11.25, {"tile": 16}]]}
    ]
    journal.append("tuning", "tilings", "passed", seconds=9.0, report={"results": tilings})
    del audio["stream"], audio["whole"]  # as far as a run came that was cut
    journal.append("audio", "int8", "timed out", seconds=480.0, report=audio)
    journal.append("audio", "nf4", "failed", seconds=3.0, report={"benchmark": "first_audio"})
    shown = gpu_report.table(journal)
    for text in (
        "tilings: head, none, 1 slots                                  12.50 us, fastest    11.25 us",
        "timed out in 480 s\n  int8                                                       first sound p50    45.0 ms",
        "failed in 3 s",
        "gpu H100, driver 570.1, sm_clock_max 1980 MHz, torch 2.13", "failed in 61 s, then at 1755 MHz",
        "1.250 ms/step    800.0 steps/s", "75 % of peak,   84 % of a copy", "out of memory", "11.50 us     3300 GB/s",
        "p50    45.0 ms", "20.70 s, 460.0x later",
        "int8: dia-engine, 16 slots", "4.50 requests/s, 63 of 64 kept",
        "first sound p50 61 ms, p95 90 ms, 21.2x real time",
    ):  # fmt: skip
        assert text in shown, (text, shown)


def test_peers_that_are_not_there_are_told_before_any_work(tmp_path, monkeypatch, capsys):
    (tmp_path / "dia").mkdir()
    for module in (tokens_per_sec, first_audio):
        monkeypatch.setattr(sys, "argv", ["x", "--against", "nari", "--reference", str(tmp_path)])
        with pytest.raises(FileNotFoundError, match="--reference: no dia/model.py in"):
            module.main()
        monkeypatch.setattr(sys, "argv", ["x", "--against", "transformers-compiled"])
        with monkeypatch.context() as patched, pytest.raises(SystemExit):
            patched.setattr(setting, "find_spec", lambda package: None)
            module.main()
        assert "need the package: pip install transformers" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["gpu", "--reference", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="--reference: no dia/model.py in"):
        gpu.main()


def test_memory_is_that_of_the_device_that_is_measured(monkeypatch):
    """And not of the current one."""
    for name, sizes in (("memory_allocated", {None: 5, 1: 100}), ("max_memory_allocated", {None: 7, 1: 160})):
        monkeypatch.setattr(torch.cuda, name, lambda device=None, of=sizes: of[device and device.index])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    assert WorkingMemory(torch.device("cuda:1")).peak() == 60


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 1 and "no CUDA device" in capsys.readouterr().err
