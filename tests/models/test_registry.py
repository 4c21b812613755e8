"""Models and the files that they are loaded from."""

import threading
from pathlib import Path

import pytest
import tiny
import torch
from huggingface_hub.utils import filter_repo_objects

from alarm_models.errors import CheckpointError
from alarm_models.modeling import checkpoint
from alarm_models.modeling.network import MODEL_INIT_LOCK, ModelInitLock
from alarm_models.recipe.specs import LengthSpec, ModelSpec, PythonSpec, SequenceSpec
from alarm_models.reward_models.base import Model
from alarm_models.reward_models.registry import CheckpointState, Loader
from alarm_models.types import Sample

CPU = torch.device("cpu")


def spec_of(folder: Path, head: str | None = None) -> SequenceSpec:
    return SequenceSpec(checkpoint=str(folder), template="{prompt} {completion}", head=head)


def load(spec: ModelSpec) -> Model:
    return Loader(CPU).load(spec, {})


def logit(model: Model) -> float:
    (features,) = model.prepare([Sample("The fox?", "The dog.")])
    return model.forward([features])[0].item()


def overwrite(folder: Path) -> None:
    """Zero a quarter of the weights, in the file that is there."""
    (file,) = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    size = file.stat().st_size
    with file.open("r+b") as weights:
        weights.seek(size // 2)
        weights.write(bytes(size // 4))


@pytest.mark.parametrize("kind", ["classifier", "head", "head in .bin"])
def test_loaded_model_with_overwritten_file_is_unchanged(kind: str, tmp_path: Path) -> None:
    if kind == "classifier":
        tiny.sequence_classifier("llama", tmp_path)
        spec = spec_of(tmp_path)
    else:
        tiny.base_with_head(tmp_path, as_bin=kind == "head in .bin")
        spec = spec_of(tmp_path, head="regression_head")
    model = load(spec)
    before = logit(model)
    overwrite(tmp_path)
    assert logit(model) == before
    assert logit(load(spec)) != before


def test_checkpoint_state_matches_until_any_file_changes(tmp_path: Path) -> None:
    tiny.sequence_classifier("llama", tmp_path)
    spec = spec_of(tmp_path)
    fingerprint = load(spec).fingerprint
    assert CheckpointState(CPU).matches(spec, {}, fingerprint)
    assert not CheckpointState(CPU).matches(
        spec.model_copy(update={"max_tokens": 64}), {}, fingerprint
    )
    config = tmp_path / "config.json"
    text = config.read_text()
    config.write_text(f"{text}\n")
    assert not CheckpointState(CPU).matches(spec, {}, fingerprint)
    config.write_text(text)
    assert CheckpointState(CPU).matches(spec, {}, fingerprint)
    overwrite(tmp_path)
    assert not CheckpointState(CPU).matches(spec, {}, fingerprint)


def test_loader_dtype_applies_to_specs_without_a_dtype_of_their_own(tmp_path: Path) -> None:
    tiny.sequence_classifier("llama", tmp_path)
    auto = spec_of(tmp_path)
    own = auto.model_copy(update={"dtype": "float32"})
    in_bfloat16 = Loader(CPU, dtype="bfloat16")
    loaded = in_bfloat16.load(auto, {})
    assert (loaded.dtype, in_bfloat16.load(own, {}).dtype) == ("bfloat16", "float32")
    assert CheckpointState(CPU, dtype="bfloat16").matches(auto, {}, loaded.fingerprint)
    assert not CheckpointState(CPU).matches(auto, {}, loaded.fingerprint)


def test_checkpoint_state_without_files_matches_only_reproducible_kinds() -> None:
    assert CheckpointState(CPU).matches(LengthSpec(), {}, "any")
    assert not CheckpointState(CPU).matches(PythonSpec(function="my:own"), {}, "any")


def test_loader_constructs_a_model_while_no_forward_pass_runs(tmp_path: Path) -> None:
    tiny.sequence_classifier("llama", tmp_path)
    spec = spec_of(tmp_path).model_copy(update={"dtype": "bfloat16"})
    loaded: list[Model] = []
    loading = threading.Thread(target=lambda: loaded.append(load(spec)))
    with MODEL_INIT_LOCK.shared():
        loading.start()
        while not MODEL_INIT_LOCK._is_under_way:  # it tells nobody
            assert loading.is_alive()
        assert torch.get_default_dtype() is torch.float32
        assert loaded == []
    loading.join(60)
    assert loaded[0].dtype == "bfloat16"


def test_model_init_lock_exclusive_blocks_forward_passes() -> None:
    construction = ModelInitLock()
    passed = threading.Event()

    def run() -> None:
        with construction.shared():
            passed.set()

    running = threading.Thread(target=run)
    with construction.exclusive():
        running.start()
        assert not passed.wait(0.05)
    assert passed.wait(60)
    running.join(60)


def test_loader_with_weights_that_change_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.sequence_classifier("llama", tmp_path)

    def digest_and_overwrite(folder: Path, **_: bool) -> str:
        overwrite(folder)
        return "of what was there before"

    monkeypatch.setattr(checkpoint, "digest", digest_and_overwrite)
    with pytest.raises(CheckpointError, match="changed while it was loaded"):
        load(spec_of(tmp_path))


@pytest.mark.parametrize("name", ["them/rm", "them/rm@v2"])
@pytest.mark.parametrize("with_code", [False, True])
def test_hub_download_uses_revision_and_skips_unused_files(
    name: str, with_code: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = [
        "config.json", "model-00001-of-00002.safetensors", "consolidated.safetensors",
        "training_args.bin", "pytorch_model.bin", "modeling_rm.py", "original/model.safetensors",
    ]  # fmt: skip
    revisions: set[str | None] = set()

    def fetch(
        repository: str, *, revision: str | None, allow_patterns: list[str],
        ignore_patterns: list[str],
    ) -> str:  # fmt: skip
        assert repository == "them/rm"
        revisions.add(revision)
        wanted = filter_repo_objects(
            there, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        for file in wanted:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr(checkpoint, "snapshot_download", fetch)
    folder = checkpoint.locate(name, "main", with_code=with_code)
    fetched = {path.name for path in folder.iterdir()}
    code = {"modeling_rm.py"} if with_code else set()
    assert fetched == {"config.json", "model-00001-of-00002.safetensors"} | code
    assert revisions == {"v2" if "@" in name else "main"}


def test_consolidated_weights_are_not_read(tmp_path: Path) -> None:
    tiny.sequence_classifier("llama", tmp_path)
    before = load(spec_of(tmp_path)).fingerprint
    (tmp_path / "consolidated.safetensors").write_bytes(b"of another layout")
    assert load(spec_of(tmp_path)).fingerprint == before
