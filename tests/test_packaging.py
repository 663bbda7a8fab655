"""What is installed and imported, and what the documentation promises."""

import ast
import pathlib
import subprocess
import sys

import pytest

import daisy_jax

ROOT = pathlib.Path(__file__).parents[1]
ALLOWED_AT_IMPORT = {"jax", "flax", "jaxtyping", "numpy", "safetensors", "daisy_jax"}
TRAINING = {"training", "tasks"}
COMMANDS = {"tyro"}  # the command line itself


def top_level_imports(path):
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).split(".")[0]


def test_library_files_import_only_the_core_libraries():
    for path in (ROOT / "daisy_jax").rglob("*.py"):
        allowed = ALLOWED_AT_IMPORT | set(sys.stdlib_module_names)
        allowed |= {"optax"} if path.parent.name in TRAINING else set()
        allowed |= COMMANDS if path.parent.name == "commands" else set()
        assert set(top_level_imports(path)) <= allowed, path


@pytest.mark.slow("starts a process")
def test_importing_the_package_loads_no_heavy_library():
    heavy = ["torch", "transformers", "librosa", "sklearn", "orbax", "soundfile", "soxr", "tyro"]
    code = f"import sys, daisy_jax; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.slow("starts a process")
def test_importing_the_package_makes_no_array_and_chooses_no_device():
    code = "import daisy_jax, jax; jax.config.update('jax_platforms', 'cpu'); print(jax.devices())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "CpuDevice" in result.stdout, result.stderr


def test_public_names_exist_and_have_docstrings():
    for name in daisy_jax.__all__:
        assert getattr(daisy_jax, name).__doc__, name


def test_version_is_the_same_everywhere():
    version = daisy_jax.__version__
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


OUTSIDE = ["daisy_jax/cost.py", "daisy_jax/encode.py"]


def test_every_config_field_is_read_by_the_model_or_the_cost():
    files = [*(ROOT / "daisy_jax/model").glob("*.py"), *map(ROOT.joinpath, OUTSIDE)]
    source = "".join(file.read_text() for file in files if file.name != "config.py")
    for field in daisy_jax.HubertConfig.__dataclass_fields__:
        assert f"config.{field}" in source, field
