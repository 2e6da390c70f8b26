"""A server that is started: it runs as long as the process that has started it, however that ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf.errors import SamplerFailed
from rlhf.policies.vllm.server import Server, first_error

MODULE = '''
"""Stands in for vLLM: answers that it is well, and says in its log how it was started."""
import json, os, socket, subprocess, sys
print(json.dumps({"arguments": sys.argv[1:], "environment": dict(os.environ)}), flush=True)
print("child", subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
if "--fails" in sys.argv:
    print("(EngineCore pid=7) INFO 11-22 05:00:00 [core.py:1] loading")
    print("(EngineCore pid=7) ERROR 11-22 05:00:00 [core.py:2] torch.OutOfMemoryError: no room for the cache")
    print("RuntimeError: Engine core initialization failed. See root cause above.", flush=True)
    os.killpg(0, 9) if "--killed" in sys.argv else sys.exit(3)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[sys.argv.index("--uds") + 1])
listener.listen()
while True:
    connection, _ = listener.accept()
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n")
    connection.close()
'''


@pytest.fixture
def python(tmp_path) -> str:
    """An interpreter with the stand-in."""
    module = tmp_path / "site/vllm/entrypoints/openai/api_server.py"
    module.parent.mkdir(parents=True)
    module.write_text(MODULE)
    file = tmp_path / "python"
    file.write_text(f'#!/bin/sh\nshift\nPYTHONPATH="{tmp_path}/site" exec "{sys.executable}" -S "$@"\n')  # shift: -I
    file.chmod(0o700)
    return str(file)


def there(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(*pids: int) -> bool:
    over = time.monotonic() + 10
    while any(map(there, pids)) and time.monotonic() < over:
        time.sleep(0.02)
    return not any(map(there, pids))


def child_of(log: Path) -> int:
    return int(log.read_text().partition("child ")[2].split()[0])


def test_it_is_private_quiet_and_ends(tmp_path, python, monkeypatch):
    secret = ("HF_TOKEN", "HF_TOKEN_PATH", "OPENAI_API_KEY_2", "DATABASE_URL", "GITHUB_PAT", "VLLM_API_KEY")
    launch = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "ACCELERATE_USE_FSDP")
    kept = ("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "HF_HOME", "LC_ALL", "NCCL_DEBUG")
    for name in (*secret, *launch, *kept):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    log = tmp_path / "vllm.log"
    server = Server(python, tmp_path / "model", log, ["--max-model-len", "64"])
    server.wait()
    started = json.loads(log.read_text().splitlines()[0])
    options, environment = started["arguments"], started["environment"]
    assert options[options.index("--max-model-len") + 1] == "64"
    assert options[options.index("--load-format") + 1] == "safetensors"
    assert not {"--host", "--port", "--api-key", "--trust-remote-code"} & set(options)
    folder = Path(options[options.index("--uds") + 1]).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not {*secret, *launch} & environment.keys()
    assert {*kept, "PATH", "HOME"} <= environment.keys()
    wanted = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "VLLM_HOST_IP": "127.0.0.1",
              "VLLM_CPU_KVCACHE_SPACE": "3"}  # fmt: skip
    assert wanted.items() <= environment.items()
    pids = server.process.pid, child_of(log)
    assert all(map(there, pids))
    server.close()
    assert gone(*pids)


def test_it_ends_with_a_process_that_is_killed(tmp_path, python, root):
    log = tmp_path / "vllm.log"
    code = f"""
import time
from pathlib import Path
from rlhf.policies.vllm.server import Server
server = Server({python!r}, Path("model"), Path({str(log)!r}))
server.wait()
print(server.process.pid, flush=True)
time.sleep(600)
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)}
    )
    pids = int(owner.stdout.readline()), child_of(log)
    assert all(map(there, pids))
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert gone(*pids)


@pytest.mark.parametrize(("options", "how"), [
    (["--fails"], "ended with exit code 3"), (["--fails", "--killed"], "was ended by signal 9"),
])  # fmt: skip
def test_one_that_does_not_start_says_why(tmp_path, python, options, how):
    log = tmp_path / "vllm.log"
    log.write_text("ValueError: of an earlier server\n")
    server = Server(python, tmp_path / "model", log, options)
    with pytest.raises(SamplerFailed) as failed:
        server.wait()
    why = "torch.OutOfMemoryError: no room for the cache"
    assert str(failed.value) == f"sampler: vLLM {how}: {why} (its log is {log})"
    server.close()
    assert gone(child_of(log))


def test_one_that_dies_later_is_named_at_the_next_request(tmp_path, python):
    server = Server(python, tmp_path / "model", tmp_path / "vllm.log")
    server.wait()
    os.killpg(server.process.pid, signal.SIGKILL)
    with pytest.raises(SamplerFailed, match=r"vLLM was ended by signal 9: child \d+ \(its log is .*vllm.log\)"):
        server.client.call("GET", "/weight_info")


@pytest.mark.parametrize(("text", "words"), [
    ("", "no output"),
    ("a\nb\n\n", "b"),
    ("(Worker pid=1) ERROR 11-22 05:00:00 [a.py:1] ValueError: first\nRuntimeError: then\n", "ValueError: first"),
    ("(APIServer pid=1) WARNING 11-22 05:00:00 [a.py:1] ValueError: no matter\nRuntimeError: it\n", "RuntimeError: it"),
    ("an Error: in passing\nlast", "last"),
])  # fmt: skip
def test_first_error(tmp_path, text, words):
    (tmp_path / "log").write_text(text)
    assert first_error(tmp_path / "log") == words
