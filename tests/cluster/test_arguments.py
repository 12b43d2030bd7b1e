"""Arguments of an application on Ray Serve, and what is said where Ray is missing. None of this needs Ray."""

import json
import sys

import pytest
import yaml

from dia_engine.cluster.arguments import Scaling, most_ongoing, read_arguments
from dia_engine.cluster.machines import share_of_machines
from dia_engine.cluster.paths import as_seen_elsewhere
from tests.helpers import ROOT


def test_text_of_the_command_line_and_values_of_a_config_file_say_the_same():
    text = {"model": "talker", "quant": "int8", "replicas": "2", "max_slots": "4", "mint": "1", "api_key": "a,b"}
    typed = {"model": "talker", "quant": "int8", "replicas": 2, "max_slots": 4, "mint": True, "api_key": ["a", "b"]}
    settings, scaling = read_arguments(text)
    assert (settings, scaling) == read_arguments(typed)
    assert (settings.slots, settings.api_key, settings.mint, scaling) == (4, ("a", "b"), True, Scaling(replicas=2))
    assert most_ongoing(settings) == 4 + 16 + 16
    assert most_ongoing(read_arguments({"max_waiting": 3})[0]) == 8 + 3 + 16, "8 slots unless told"


def test_the_environment_of_the_server_holds_too(monkeypatch):
    monkeypatch.setenv("DIA_SERVE_QUANT", "nf4")
    monkeypatch.setenv("DIA_SERVE_SLOTS", "3")
    monkeypatch.setenv("DIA_API_KEYS", "secret")
    settings, _ = read_arguments({"model": "talker"})
    assert (settings.quant, settings.slots, settings.api_key) == ("nf4", 3, ("secret",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modle": "talker"}, "unknown argument 'modle'; there are api_key,"),
        ({"port": "8000"}, "port has no effect: Ray Serve listens"),
        ({"slots": "many"}, "slots must be an integer, got 'many'"),
        ({"slots": 0}, "slots must be at least 1, got 0"),
        ({"slots": 2, "max_slots": 2}, "slots and max_slots are the same"),
        ({"slots": True}, "slots must be an integer, got True"),
        ({"quant": 8}, "quant must be a string, got 8"),
        ({"mint": "perhaps"}, "mint must be 0 or 1, got 'perhaps'"),
        ({"api_key": [1]}, "api_key must be a list of strings, got"),
        ({"max_wait": "inf"}, "max_wait must be finite"),
        ({"device": "cuda:1"}, "device must be cuda or cpu"),
        ({"device": "gpu"}, "device must be cuda or cpu, Ray chooses which GPU; got 'gpu'"),
        ({"gpus": "1.5"}, "gpus must be whole beyond 1, got 1.5"),
        ({"replicas": "0"}, "replicas must be at least 1, got 0"),
        ({"replicas": 2, "max_replicas": 3}, "replicas is a fixed number"),
        ({"min_replicas": 2}, "min_replicas needs max_replicas"),
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas must be at most max_replicas 2, got 3"),
        ({"gpus": "-1"}, "gpus must be at least 0"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_arguments(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("machines", "engines", "device", "share"),
    [
        ([{"CPU": 8}], None, None, (1, {"num_cpus": 8})),
        ([{}, {"CPU": 32}, {"CPU": 32}], None, None, (2, {"num_cpus": 32})),  # a head that computes nothing
        ([{"CPU": 0.0}, {"CPU": 4}], 4, "cpu", (4, {"num_cpus": 1})),
        ([{"CPU": 16}, {"CPU": 16}], 3, None, (3, {"num_cpus": 8})),
        ([{"CPU": 2}], 5, None, (5, {"num_cpus": 1})),
        ([{}], None, None, (1, {"num_cpus": 1})),
        ([{"CPU": 8}, {"CPU": 8, "GPU": 2}], None, None, (2, {"num_gpus": 1})),
        ([{"CPU": 8, "GPU": 2}], None, "cpu", (1, {"num_cpus": 8})),
    ],
)
def test_engines_divide_the_machines_that_can_run_them(machines, engines, device, share):
    assert share_of_machines(machines, engines, device) == share


def test_engines_on_gpus_need_a_machine_with_one():
    with pytest.raises(ValueError, match="device is cuda, and no machine of the cluster offers a GPU"):
        share_of_machines([{"CPU": 8}], None, "cuda")


def test_the_example_for_kubernetes_has_arguments_that_are_taken():
    manifest = yaml.safe_load((ROOT / "deploy" / "kuberay.yaml").read_text())
    (served,) = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"]
    settings, scaling = read_arguments(served["args"])
    (group,) = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert served["import_path"] == "dia_engine.cluster:app" and settings.device == "cuda"
    assert (scaling.min_replicas, scaling.max_replicas) == (group["minReplicas"], group["maxReplicas"])


def test_files_are_named_so_that_other_processes_find_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "talker").mkdir()
    assert as_seen_elsewhere("model") == str(tmp_path / "model")
    assert as_seen_elsewhere("talker") == "talker" and as_seen_elsewhere(None) is None


@pytest.mark.parametrize("module", ["ray", "ray.data"])
def test_without_ray_a_line_says_what_to_install(warm_python, tmp_path, module):
    (tmp_path / "scripts.jsonl").write_text(json.dumps({"id": "a", "text": "[S1] Hello."}) + "\n")
    command = ["batch", str(tmp_path / "scripts.jsonl"), "-o", str(tmp_path / "out"), "--model", "talker", "--ray"]
    script = f"import sys; sys.modules[{module!r}] = None; from dia_engine.cli import main; sys.exit(main({command}))"
    done = warm_python.run(script)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1, done.stderr
    assert b"pip install 'dia-engine[ray]'" in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("device", "message"), [("cuda", "pip install 'dia-engine[ray]'"), ("cuda:1", "must be cuda or cpu")]
)
def test_a_batch_on_ray_needs_no_device_here(tmp_path, monkeypatch, capsys, device, message):
    """Only its kind is checked, and that Ray is missing is told next."""
    from dia_engine.cli import main

    monkeypatch.setitem(sys.modules, "ray", None)
    command = ["batch", str(tmp_path / "scripts.jsonl"), "-o", str(tmp_path), "--model", "talker", "--ray"]
    assert main([*command, "--device", device]) == 2
    assert message in capsys.readouterr().err


def test_without_ray_the_application_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    from dia_engine.cluster import app

    with pytest.raises(RuntimeError, match="pip install 'dia-engine\\[ray\\]'"):
        app({})


def test_actors_without_ray_are_a_mistake(tmp_path, capsys):
    from dia_engine.cli import main

    (tmp_path / "scripts.jsonl").write_text("{}")
    assert (
        main(["batch", str(tmp_path / "scripts.jsonl"), "-o", str(tmp_path), "--model", "talker", "--actors", "2"]) == 2
    )
    assert "--actors" in capsys.readouterr().err
