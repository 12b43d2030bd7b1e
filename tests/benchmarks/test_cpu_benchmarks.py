"""The benchmarks of a CPU: their figures by hand, and that they run. No test depends on how long anything takes."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import busy_neighbor, cpu_products, roofline, tokens_per_sec
from benchmarks.peers import Timing
from dia_engine.kernels import linear
from dia_engine.kernels.cpu.build import library
from dia_engine.model.config import DiaConfig


def test_shapes_of_a_step():
    shapes = cpu_products.step_shapes(DiaConfig())
    assert set(shapes) == {(3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192), (9252, 2048)}
    assert shapes[3072, 2048] == ["self_attn.qkv"] and shapes[9252, 2048] == ["head"]
    assert set(shapes[2048, 2048]) == {"self_attn.o", "cross_attn.q", "cross_attn.o"}


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "nf4"])
def test_every_product_gives_the_same_and_one_is_chosen(kind):
    weight = cpu_products._weight(kind, (48, 128))
    found = cpu_products.candidates(weight)
    x = torch.randn(4, 128).to(weight.dtype)
    dense = weight if isinstance(weight, torch.Tensor) else weight.dequantize()
    for product, form in found.values():
        torch.testing.assert_close(product(x, form).float(), (x @ dense.t()).float(), rtol=2e-2, atol=3e-2)
    (first, second) = cpu_products.measure(kind, (48, 128), rows=[2, 3], rounds=1)
    assert first["chosen"] in found and set(first["milliseconds"]) == set(found)
    assert (first["rows"], second["rows"]) == (2, 3)


def test_a_wrong_rule_is_told():
    def result(rows, chosen, **milliseconds):
        return {"kind": "int8", "shape": [8, 4], "rows": rows, "chosen": chosen, "milliseconds": milliseconds}

    right = [result(2, "C", C=1.09, oneDNN=1.0), result(32, "C", C=5.0, oneDNN=1.0)]
    assert cpu_products.verdict(right).startswith("the rule is right")
    said = cpu_products.verdict([*right, result(2, "C", C=3.0, oneDNN=2.0)])
    assert said == "the rule is wrong: int8 8 x 4 with 2 rows takes 1.50x as long with C as with oneDNN"


def test_a_rule_that_was_not_judged_is_not_right():
    (result,) = [{"rows": 8, "chosen": "C", "milliseconds": {"C": 1.0}}]
    assert cpu_products.verdict([result]).startswith("the rule was not judged")


def test_products_command(tmp_path, monkeypatch):
    file = tmp_path / "x.json"
    arguments = ["--model", "synthetic:tiny", "--rows", "2", "--kinds", "bfloat16", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["cpu_products", *arguments, "--json", str(file)])
    cpu_products.main()
    report = json.loads(file.read_text())
    assert {result["kind"] for result in report["results"]} == {"bfloat16"} and report["cores"] >= 1


def test_every_rule_has_a_name():
    products = {value for name, value in vars(linear).items() if name.startswith("multiply")}
    assert products - set(cpu_products.NAMES) == {linear.multiply_plain, linear.multiply_sequence}  # not a CPU's step


def test_ratios_are_those_of_medians():
    alone, busy = (
        [{"whole": 2.0, "sound": 0.011}, {"whole": 9.0, "sound": 0.05}, {"whole": 2.2, "sound": 0.012}],
        [{"whole": 4.4, "sound": 0.036}, {"whole": 6.6, "sound": 0.024}, {"whole": 5.5, "sound": 0.03}],
    )
    alone, busy = busy_neighbor.summary({"alone": alone, "2 spinning": busy})
    assert alone["whole_seconds"] == 2.2 and alone["whole_ratio"] == alone["sound_ratio"] == 1
    assert busy["whole_ratio"] == pytest.approx(2.5) and busy["sound_ratio"] == pytest.approx(2.5)
    report = {"device": "a CPU", "cores": 2, "torch": "2", "runs": 3, "results": [alone, busy]}
    assert "2 spinning                 5.50 s  2.50x 30.00 ms  2.50x" in busy_neighbor.table(report)


def test_a_step_is_timed_beside_its_neighbors(tmp_path, monkeypatch, capsys):
    file = tmp_path / "busy.json"
    arguments = ["--step", "synthetic:tiny", "--dtype", "float32", "--runs", "1", "--json", str(file)]
    monkeypatch.setattr(busy_neighbor, "NEIGHBORS", {"alone": [], "1 spinning": [busy_neighbor.SPINNING]})
    monkeypatch.setattr(sys, "argv", ["busy_neighbor", *arguments])
    busy_neighbor.main()
    results = json.loads(file.read_text())["results"]
    assert [result["name"] for result in results] == ["alone", "1 spinning"]
    assert all(result["step_seconds"] > 0 for result in results) and "step" in capsys.readouterr().out


@pytest.mark.parametrize("program", [busy_neighbor.SPINNING, busy_neighbor.COMPUTING])
def test_neighbors_end_with_the_process_that_began_them(program):
    """Also if it is killed, which leaves it no time to end them."""
    begin = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]]).wait()"
    parent = subprocess.Popen([sys.executable, "-c", begin, program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "\n"  # the neighbor runs
    parent.kill()
    assert parent.stdout.read() == ""  # the end of the pipe, which the neighbor holds too
    parent.wait()


def test_neighbors_run_and_end():
    with busy_neighbor.running([busy_neighbor.SPINNING]):
        pass
    with pytest.raises(OSError, match="status 3"), busy_neighbor.running(["raise SystemExit(3)"]):
        pass


@pytest.mark.skipif(library() is None, reason="there is no compiled code")
@pytest.mark.parametrize("threads", [1, 2])
def test_memory_is_read_to_its_end(threads):
    memory = torch.randint(-(2**31), 2**31 - 1, (2**18 * 3 + 64 * 5 + 17,)).to(torch.int32)
    whole = len(memory) // 64 * 64
    found = library().read_memory(memory.data_ptr(), memory.nbytes, threads)
    assert found == memory[:whole].sum().item() % 2**32


@pytest.mark.skipif(library() is None, reason="there is no compiled code")
def test_the_bandwidth_is_that_of_the_fastest_read(monkeypatch):
    seconds = iter([0.5, 0.25, 1.0])
    monkeypatch.setattr(roofline, "_seconds", lambda work: (work(), next(seconds))[1])
    assert roofline.read_bandwidth(bytes_read=8000, repeats=3) == 8000 / 0.25


def test_no_compiled_step_no_bandwidth(monkeypatch):
    monkeypatch.setattr(roofline, "library", lambda: None)
    assert roofline.read_bandwidth() is None


def test_stages_are_means_over_all_steps():
    timings = [Timing(9.0, [0.1, 0.3]), Timing(9.0, [0.2, 0.2])]  # two first steps and four others
    found = tokens_per_sec._stage_milliseconds({"project_qkv": 0.6, "next_row": 0.3}, timings)
    assert found == pytest.approx({"qkv": 100.0, "sampling": 50.0, "rest": 50.0})
    assert tokens_per_sec._stage_milliseconds({}, timings) is None


@pytest.mark.skipif(library() is None, reason="there is no compiled code")
def test_a_step_is_divided(tmp_path, monkeypatch, capsys):
    file = tmp_path / "x.json"
    monkeypatch.setattr(tokens_per_sec, "read_bandwidth", lambda: 5e9)
    monkeypatch.setattr(tokens_per_sec, "copy_bandwidth", lambda *_: 5e9)
    arguments = ["--model", "synthetic:tiny", "--device", "cpu", "--steps", "4", "--runs", "1", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["tokens_per_sec", *arguments])
    tokens_per_sec.main()
    (result,) = json.loads(file.read_text())["results"]
    assert set(result["stage_milliseconds"]) == {*tokens_per_sec.STAGE_NAMES.values(), "rest"}
    assert result["read_gigabytes_per_second"] == 5
    assert result["roofline_percent"] == pytest.approx(100 * result["gigabytes_per_second"] / 5)
    assert "of 5.0 GB/s; ms of a step: qkv " in capsys.readouterr().out
