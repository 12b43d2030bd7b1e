"""Finding a model's files: every kind of folder, and a hub that runs on this machine and counts what is asked of it."""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dia_engine.files.hub import DEFAULT_MODEL, ModelFiles, find_config, find_model
from dia_engine.model.config import DiaConfig
from dia_engine.weights.load import load_weights
from dia_engine.weights.save import save_weights
from dia_engine.weights.source import TALKER_FOLDER

NARI_FOLDER = Path(__file__).parents[1] / "data" / "nari_layout"
CONFIG_TEXT = (NARI_FOLDER / "config.json").read_text()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
INDEX = "model.safetensors.index.json"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX_TEXT = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0]}})


def fill(folder: Path, *names: str) -> Path:
    """A folder with files that hold nothing, but for config.json and the index."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"config.json": CONFIG_TEXT, INDEX: INDEX_TEXT}
    for name in names:
        (folder / name).write_text(texts.get(name, ""))
    return folder


# Local folders


@pytest.mark.parametrize(
    "present, taken",
    [
        (["model.safetensors", INDEX, *SHARDS, "other.safetensors", "dia-v1.pth"], ["model.safetensors"]),
        ([INDEX, *SHARDS, "other.safetensors", "pytorch_model.bin"], SHARDS),
        (["dia-v0_1_bf16.safetensors", "pytorch_model.bin", "dia-v1.pth"], ["dia-v0_1_bf16.safetensors"]),
        (["other.safetensors", *SHARDS], ["other.safetensors"]),
        (["pytorch_model.bin", "dia-v1.pth", "dia-v0_1.pth", "training_args.bin"], ["pytorch_model.bin"]),
        (["dia-v1.pth", "training_args.bin"], ["dia-v1.pth"]),
        (["weights.bin", "README.md"], ["weights.bin"]),
    ],
)
def test_which_weights_of_a_folder_are_taken(tmp_path, present, taken):
    folder = fill(tmp_path, "config.json", "generation_config.json", *present)
    for model in (folder, str(folder)):
        assert find_model(model) == ModelFiles(folder / "config.json", [folder / name for name in taken], str(folder))


@pytest.mark.parametrize(
    "present, error, message",
    [
        (["a.safetensors", "b.safetensors", "x.pth"], ValueError, "keep one: a.safetensors, b.safetensors"),
        (["a.pth", "b.pth", "c.bin"], ValueError, "keep one: a.pth, b.pth"),
        (["a.bin", "b.bin"], ValueError, "keep one: a.bin, b.bin"),
        (SHARDS, FileNotFoundError, f"no {INDEX} in .* beside {SHARDS[0]}, {SHARDS[1]}"),
        ([INDEX, SHARDS[0]], FileNotFoundError, f"{INDEX} names {SHARDS[1]}, not there"),
        (["notes.txt"], FileNotFoundError, "no weights"),
        ([], FileNotFoundError, "no weights"),
    ],
)
def test_folders_without_a_clear_choice(tmp_path, present, error, message):
    with pytest.raises(error, match=message) as caught:
        find_model(fill(tmp_path, "config.json", *present))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../x"}}', '{"weight_map": {"a": 1}}', "null"]
)
def test_a_damaged_index(tmp_path, text):
    fill(tmp_path, "config.json", *SHARDS)
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ValueError, match=f"{INDEX}(: not an index of weight files| is not JSON)"):
        find_model(tmp_path)


def test_a_config_is_found_without_weights(tmp_path):
    assert find_config(fill(tmp_path, "config.json")) == tmp_path / "config.json"


def test_a_folder_without_config(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json in"):
        find_model(fill(tmp_path, "model.safetensors"))


def test_a_file_is_not_a_model(tmp_path):
    with pytest.raises(ValueError, match="is a file; give the folder that holds it and its config.json"):
        find_model(fill(tmp_path, "dia-v1.pth") / "dia-v1.pth")


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path / "models" / "dia", "config.json", "model.safetensors")
    for model in ("~/models/dia", Path("~/models/dia")):
        assert find_model(model).weights == [tmp_path / "models" / "dia" / "model.safetensors"]


def test_a_folder_named_like_a_hub_id_is_taken_as_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "owner" / "name", "config.json", "model.safetensors")
    assert find_model("owner/name").config == Path("owner/name/config.json")


LOOKS_LIKE_PATH = ["./models/dia", "../dia", "/models/dia", "~/dia", "~nobody-here/dia", "a/b/c", "models/dia/", "dia/"]
LOOKS_LIKE_PATH += ["models\\dia", "dia", "models/dia.pth", ".", Path("owner/name")]


@pytest.mark.parametrize("model", LOOKS_LIKE_PATH)
def test_what_looks_like_a_path_is_never_asked_of_the_hub(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # any import of it would raise ImportError
    with pytest.raises(FileNotFoundError, match="no (model at|config.json)"):
        find_model(model)


def test_wrong_arguments(tmp_path):
    with pytest.raises(TypeError, match="model must be a folder or a hub id, got NoneType"):
        find_model(None)
    for empty in ("", " "):
        with pytest.raises(ValueError, match="got an empty string"):
            find_model(empty)
    with pytest.raises(ValueError, match="revision 'main' has no meaning for .*, which is local"):
        find_model(fill(tmp_path, "config.json", "model.safetensors"), revision="main")


@pytest.mark.parametrize("limit", [5_000_000_000, 200_000])
def test_what_we_save_is_found_and_loads(tmp_path, limit):
    source = find_model(NARI_FOLDER)
    config = DiaConfig.from_file(source.config)
    weights = load_weights(source.weights, config, dtype=torch.float32, device="cpu")
    save_weights(weights, config, tmp_path / "saved", max_shard_bytes=limit)
    found = find_model(tmp_path / "saved")
    assert (len(found.weights) == 1) == (limit > 200_000)
    again = load_weights(found.weights, DiaConfig.from_file(found.config), dtype=torch.float32, device="cpu")
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())


# The hub


class FakeHub(ThreadingHTTPServer):
    """One model repository behind the hub's HTTP interface. `asked` lists the files that were downloaded."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), FakeHubRequest)
        self.files: dict[str, bytes] = {}
        self.gated = False
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def hub():
    with FakeHub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class FakeHubRequest(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0].strip("/")
        if "owner/name" not in path:
            self.answer(404, headers={"X-Error-Code": "RepoNotFound"})
        elif path.startswith("api/models/owner/name"):
            self.answer_listing(path.removeprefix("api/models/owner/name").strip("/"))
        else:
            self.answer_file(path.removeprefix("owner/name/resolve/").partition("/")[2])

    def answer_listing(self, path: str):
        kind, _, revision = path.partition("/")
        if revision not in ("", "main", COMMIT):
            self.answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        elif kind == "tree":
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": f"{index:040}"}
                for index, (name, data) in enumerate(self.server.files.items())
            ]
            self.answer(200, json.dumps(entries).encode())
        else:
            siblings = [{"rfilename": name} for name in self.server.files]
            self.answer(200, json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode())

    def answer_file(self, name: str):
        if self.server.gated:
            self.answer(403, headers={"X-Error-Code": "GatedRepo"})
            return
        if self.command == "GET":
            self.server.asked.append(name)
        self.answer(200, self.server.files[name], {"ETag": f'"{abs(hash(name)):x}"', "X-Repo-Commit": COMMIT})

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


FIND = """
import json, sys
connections = []
sys.addaudithook(lambda event, _: event == "socket.connect" and connections.append(event))
from dia_engine.files.hub import find_model
from dia_engine.weights.source import resolve_model
try:
    resolve_model(*sys.argv[1:])  # which looks at the config before any weights are fetched
    files = find_model(sys.argv[1], *sys.argv[2:])
    answer = {"config": str(files.config), "weights": [str(path) for path in files.weights], "source": files.source}
except Exception as error:
    answer = {"error": type(error).__name__, "message": str(error)}
json.dump({**answer, "connections": len(connections)}, sys.stdout)
"""


FIND_CODEC = FIND.replace("resolve_model(*sys.argv[1:])", "Codec.load(sys.argv[1], revision=(sys.argv + [None])[2])")
FIND_CODEC = FIND_CODEC.replace("import json, sys", "import json, sys; from dia_engine.codec import Codec")


@pytest.fixture
def ask_counting(warm_python, tmp_path):
    """`find_model` in a process of its own, since huggingface_hub reads its environment once -> its answer, and how
    many connections it tried to open."""

    def ask(*arguments: str, program: str = FIND, **environment: str) -> tuple[dict, int]:
        clean = {key: value for key, value in os.environ.items() if not key.upper().startswith("HF_")}
        clean = {key: value for key, value in clean.items() if "PROXY" not in key.upper()}
        settings = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        done = warm_python.run(program, *arguments, environment={**clean, **settings, **environment})
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert "\n" not in answer.get("message", "")
        return answer, answer.pop("connections")

    return ask


@pytest.fixture
def ask(ask_counting):
    """As `ask_counting`, the answer alone."""
    return lambda *arguments, **keywords: ask_counting(*arguments, **keywords)[0]


def repository(*names: str) -> dict[str, bytes]:
    texts = {"config.json": CONFIG_TEXT, "generation_config.json": "{}", INDEX: INDEX_TEXT}
    return {name: texts.get(name, f"content of {name}").encode() for name in names}


REAL_REPOSITORY = [".gitattributes", "README.md", "config.json", "generation_config.json", "preprocessor_config.json"]
REAL_REPOSITORY += ["tokenizer_config.json", "dia-v1.pth", "pytorch_model.bin", INDEX, *SHARDS]


@pytest.mark.parametrize(
    "present, fetched, taken",
    [
        (REAL_REPOSITORY, ["config.json", "generation_config.json", INDEX, *SHARDS], SHARDS),
        (
            ["config.json", "model.safetensors", "onnx/model.safetensors", "dia-v1.pth"],
            ["config.json", "model.safetensors"],
            ["model.safetensors"],
        ),
        (
            ["config.json", "dia-v1.pth", "pytorch_model.bin"],
            ["config.json", "pytorch_model.bin"],
            ["pytorch_model.bin"],
        ),
        (["config.json", "dia-v1.pth"], ["config.json", "dia-v1.pth"], ["dia-v1.pth"]),
    ],
)
def test_fetches_only_what_is_needed_and_then_needs_no_network(ask, tmp_path, hub, present, fetched, taken):
    hub.files = repository(*present)
    snapshot = tmp_path / "models--owner--name" / "snapshots" / COMMIT
    found = ask("owner/name", HF_ENDPOINT=hub.url)
    assert found == {
        "config": str(snapshot / "config.json"),
        "weights": [str(snapshot / name) for name in taken],
        "source": "owner/name",
    }
    assert sorted(hub.asked) == sorted(fetched)
    assert Path(found["weights"][0]).read_bytes() == hub.files[taken[0]]
    assert ask("owner/name", HF_HUB_OFFLINE="1") == found
    assert ask("owner/name", COMMIT, HF_ENDPOINT="http://127.0.0.1:9") == found


def test_nothing_large_is_fetched_of_a_model_that_cannot_be_read(ask, tmp_path, hub):
    old = json.dumps({"model": {"encoder": {"n_layer": 12}}}).encode()
    hub.files = {**repository("dia-v0_1.pth", "model.safetensors"), "config.json": old}
    answer = ask("owner/name", HF_ENDPOINT=hub.url)
    assert answer["error"] == "ValueError" and DEFAULT_MODEL in answer["message"]
    assert hub.asked == ["config.json"]


@pytest.mark.parametrize(
    "present, error, message",
    [
        (["model.safetensors"], "FileNotFoundError", "no config.json in the hub's owner/name"),
        (["config.json"], "FileNotFoundError", "no weights (*.safetensors, *.pth or *.bin) in the hub's owner/name"),
        (["config.json", "a.pth", "b.pth"], "ValueError", "several files in the hub's owner/name"),
        (["config.json", INDEX, SHARDS[0]], "FileNotFoundError", f"{INDEX} names {SHARDS[1]}, not there"),
    ],
)
def test_repositories_that_hold_no_model(ask, tmp_path, hub, present, error, message):
    hub.files = repository(*present)
    answer = ask("owner/name", HF_ENDPOINT=hub.url)
    assert answer["error"] == error and message in answer["message"]


def test_wrong_names_and_missing_rights(ask, tmp_path, hub):
    hub.files = repository("config.json", "model.safetensors")
    answer = ask("someone/else", HF_ENDPOINT=hub.url)
    assert answer["error"] == "FileNotFoundError"
    assert "no folder and no hub model someone/else; check the name, or log in" in answer["message"]
    answer = ask("owner/name", "v9", HF_ENDPOINT=hub.url)
    assert answer == {"error": "FileNotFoundError", "message": "the hub's owner/name has no revision v9"}
    hub.gated = True
    answer = ask("owner/name", HF_ENDPOINT=hub.url)
    assert answer["error"] == "FileNotFoundError"
    assert "owner/name is gated: ask for access at https://huggingface.co/owner/name" in answer["message"]
    answer = ask("not a/valid id!", HF_ENDPOINT=hub.url)
    assert answer["error"] == "ValueError" and "'not a/valid id!' is neither a folder nor a hub id" in answer["message"]


def test_a_codec_is_told_of_as_a_model_is(ask, tmp_path, hub):
    def refusal(*arguments, **environment):
        answer = ask(*arguments, program=FIND_CODEC, **{"HF_ENDPOINT": hub.url, **environment})
        assert answer["error"] == "FileNotFoundError"
        return answer["message"]

    hub.files = repository("config.json", "model.safetensors")
    assert "no folder and no hub codec someone/else; check the name, or log in" in refusal("someone/else")
    assert refusal("owner/name", "v9") == "the hub's owner/name has no revision v9"
    hub.gated = True
    assert "owner/name is gated: ask for access at https://huggingface.co/owner/name" in refusal("owner/name")
    message = refusal("owner/name", "main", HF_HUB_OFFLINE="1")
    assert "codec owner/name at revision main is not a folder and not in the hub's cache" in message
    assert "no codec at foo: no such file or folder" in refusal("foo")


@pytest.mark.parametrize(
    "network",
    [
        {"HF_HUB_OFFLINE": "1"},
        {"HF_ENDPOINT": "http://127.0.0.1:9"},
        {"HF_ENDPOINT": "http://hub.invalid", "HTTP_PROXY": "http://127.0.0.1:9"},
    ],
)
def test_out_of_reach_and_not_in_the_cache(ask_counting, tmp_path, network):
    answer, connections = ask_counting("owner/name", "main", **network)
    assert connections <= 2, "a refused connection must not be tried again and again"
    assert answer["error"] == "FileNotFoundError" and "owner/name at revision main" in answer["message"]


def cached(cache: Path, *names: str) -> Path:
    """A repository in the hub's cache, as an older huggingface_hub or another tool leaves it."""
    folder = cache / "models--owner--name"
    for part in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (folder / part).mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for index, (name, data) in enumerate(repository(*names).items()):
        (folder / "blobs" / f"{index:040}").write_bytes(data)
        (folder / "snapshots" / COMMIT / name).symlink_to(f"../../blobs/{index:040}")
    return folder / "snapshots" / COMMIT


@pytest.mark.parametrize("network", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
@pytest.mark.parametrize("present, taken", [([INDEX, *SHARDS], SHARDS), (["pytorch_model.bin"], ["pytorch_model.bin"])])
def test_a_cache_that_others_filled_serves_without_a_network(ask, tmp_path, network, present, taken):
    snapshot = cached(tmp_path, "config.json", *present)
    found = ask("owner/name", **network)
    assert found["weights"] == [str(snapshot / name) for name in taken]


@pytest.mark.parametrize("present", [[], [INDEX, SHARDS[0]], [SHARDS[0]]])
def test_a_partly_filled_cache_without_a_network(ask, tmp_path, present):
    cached(tmp_path, "config.json", *present)
    answer = ask("owner/name", HF_HUB_OFFLINE="1")
    assert answer["error"] == "FileNotFoundError"
    assert "owner/name is only partly in the cache" in answer["message"] and "offline mode" in answer["message"]


def test_a_partly_filled_cache_is_completed(ask, tmp_path, hub):
    snapshot = cached(tmp_path, "config.json", INDEX, SHARDS[0])
    hub.files = repository("config.json", INDEX, *SHARDS, "dia-v1.pth")
    found = ask("owner/name", HF_ENDPOINT=hub.url)
    assert found["weights"] == [str(snapshot / name) for name in SHARDS]
    assert "dia-v1.pth" not in hub.asked and SHARDS[1] in hub.asked


def test_a_model_from_the_hub_loads(ask, tmp_path, hub):
    hub.files = {path.name: path.read_bytes() for path in NARI_FOLDER.iterdir()}
    found = ask("owner/name", "main", HF_ENDPOINT=hub.url)
    config = DiaConfig.from_file(found["config"])
    weights = load_weights([Path(path) for path in found["weights"]], config, dtype=torch.float32, device="cpu")
    stored = load_file(NARI_FOLDER / "model.safetensors")
    assert torch.equal(weights["encoder.norm.weight"], stored["encoder.norm.weight"].float())


LOAD_CODEC = """
import json, sys
from dia_engine.weights.source import resolve_model
source = resolve_model("owner/name")
config = source.codec_config()
json.dump({"codebooks": config.n_codebooks, "rate": config.sampling_rate, "connections": 0}, sys.stdout)
"""


def test_a_models_own_codec_is_fetched_when_it_is_asked_for(ask, tmp_path, hub):
    paths = [path for path in TALKER_FOLDER.rglob("*") if path.is_file()]
    hub.files = {str(path.relative_to(TALKER_FOLDER)): path.read_bytes() for path in paths}
    assert "codec/config.json" in hub.files
    ask("owner/name", HF_ENDPOINT=hub.url)
    assert not any("codec" in name for name in hub.asked), "not before"
    own = json.loads(hub.files["codec/config.json"])
    found = ask(program=LOAD_CODEC, HF_ENDPOINT=hub.url)
    assert found == {"codebooks": own["n_codebooks"], "rate": own["sampling_rate"]}
    assert {name for name in hub.asked if "codec" in name} == {name for name in hub.files if "codec" in name}
    assert ask(program=LOAD_CODEC, HF_HUB_OFFLINE="1") == found
    assert ask(program=LOAD_CODEC, HF_ENDPOINT="http://127.0.0.1:9") == found
