"""The command line, and the wheel in a folder with nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.scripts_under_test import ROOT, Done, python
from ttf import commands
from ttf.config_store import CONFIGS

UV = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))


def test_every_command_says_what_it_does_and_has_a_script():
    scripts = {file.stem for file in (ROOT / "scripts").glob("*.py")}
    assert set(commands.names()) == scripts and {"eval", "finetune", "benchmark", "table", "doctor"} <= scripts
    for name in commands.names():
        what, example = commands.summary(name)
        assert what and example.startswith(f"ttf {name}"), name
    assert all(f"  {name} " in commands.usage() for name in commands.names())


def test_scripts_are_the_same_commands():
    for name in commands.names():
        assert f'start("{name}")' in (ROOT / "scripts" / f"{name}.py").read_text()


def test_a_mistyped_command_is_answered_in_one_line():
    done = python("-m", "ttf", "evla")
    assert (done.returncode, done.stderr) == (2, "error: there is no command 'evla': do you mean ttf eval?\n")


def test_help_imports_neither_torch_nor_hydra():
    code = "import sys; sys.argv = ['ttf', '--help']; from ttf import commands; commands.main(); "
    done = python("-c", code + "print(sorted({'torch', 'hydra', 'omegaconf', 'timm'} & set(sys.modules)))")
    assert done.stdout.startswith("Token Transforming") and done.stdout.endswith("[]\n"), done


def test_importing_commands_imports_no_torch():
    """A mistake in a setting shows before torch is there."""
    imports = "; ".join(f"import ttf.commands.{name}" for name in commands.names())
    done = python("-c", f"import sys; {imports}; print('torch' in sys.modules)")
    assert done.stdout == "False\n", done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Callable[..., Done]:
    """``ttf`` as a built wheel has it, in an empty folder; packages that it needs come from this environment."""
    if not Path(UV).is_file():
        pytest.skip("needs uv, which make setup uses")
    folder = tmp_path_factory.mktemp("wheel")
    build = [UV, "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "-o", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    install = [UV, "pip", "install", "--no-deps", "--python", sys.executable, "--target", str(folder / "installed")]
    subprocess.run([*install, str(file)], check=True, capture_output=True)
    (folder / "empty").mkdir()

    def run(*arguments: str, **environment: str) -> Done:
        env = {**os.environ, "PYTHONPATH": str(folder / "installed"), "OMP_NUM_THREADS": "1", **environment}
        command = [str(folder / "installed" / "bin" / "ttf"), *arguments] if arguments[0] != "-c" else []
        done = subprocess.run(
            command or [sys.executable, *arguments], cwd=folder / "empty", env=env, capture_output=True, text=True
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


IN_A_WHEEL = """
import sys
from ttf import commands, config_store
print(config_store.CONFIGS)
for command in {commands!r}:
    sys.argv = ["ttf", *command]
    try:
        commands.main()
    except SystemExit as error:
        print("exit", error.code)
"""


def test_a_row_and_a_table_from_the_wheel_alone(wheel, tmp_path):
    """The first has all that it needs; the second says where rows are looked for, and where the published ones are."""
    row = ["eval", "model=vit_mini", "ratio=0.5", "limit=64", "throughput.batch_size=0", f"out={tmp_path}/row.json"]
    done = wheel("-c", IN_A_WHEEL.format(commands=[row, ["table", "table=table6"]]))
    assert done.returncode == 0 and done.stdout.splitlines()[0].endswith("installed/ttf/configs"), done
    written = json.loads((tmp_path / "row.json").read_text())
    assert written["images"] == 64 and [layer["tokens"] for layer in written["tokens"]] == [73, 37, 19]
    assert written["git"] == {"sha": None, "dirty": None}  # no repository around it is mistaken for its own
    assert done.stdout.endswith("exit 2\n") and "ttf sweep table=table6 measures them" in done.stderr
    assert f"empty{os.sep}results{os.sep}rows" in done.stderr and "results/rows of a clone" in done.stderr


def test_the_wheel_brings_every_config(wheel):
    count = "import ttf.config_store as c; print(sum(1 for _ in c.CONFIGS.rglob('*.yaml')))"
    assert int(wheel("-c", count).stdout) == sum(1 for _ in CONFIGS.rglob("*.yaml"))


def test_the_wheel_answers_fast(wheel):
    """Generous bounds of what takes 0.2 and 1.6 s on an idle machine: nothing heavy may be imported."""
    begin = time.process_time()
    assert wheel("--version").stdout.startswith("ttf ") and wheel("--help").returncode == 0
    assert wheel("eval", "rato=0.5").stderr == "error: rato is no setting of this command: do you mean ratio?\n"
    assert time.process_time() - begin < 3


def test_torch_hub_loads_from_a_clone():
    import torch

    model = torch.hub.load(str(ROOT), "vit_mini", source="local", ratio=0.5)
    assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 10)
    with pytest.raises(ValueError, match="there is no model=vit_nano"):
        torch.hub.load(str(ROOT), "compressed", "vit_nano", source="local")
