"""States at step ends are those of a plain forward pass, however they are batched, shared, cut or cached."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from cpmi.errors import InputError
from cpmi.models import ModelSettings
from cpmi.prm import features
from cpmi.prm.checkpoint import open_checkpoint
from cpmi.prm.encode import Encoded
from cpmi.prm.features import FeatureCache
from cpmi.prm.model import PRM
from cpmi.prm.network import StepScorer, decoder_of
from cpmi.prm.states import StateReader, StepStates
from cpmi.records import Trajectory
from tiny_models import CONFIGS, WINDOW, byte_tokenizer, tiny_model

CPU = torch.device("cpu")
HIDDEN = 32
# Full attention, a window in every layer, windows in some layers (told by a mask per kind, and not), learned positions,
# and recurrent layers.
KINDS = ("llama", "qwen2", "mistral", "gemma3", "exaone4-mixed", "gpt2", "mamba")


@functools.cache
def network(kind: str) -> StepScorer:
    return StepScorer(decoder_of(tiny_model(kind), kind), nn.Linear(HIDDEN, 1)).eval()


def reader(kind: str = "llama", *, batch_tokens: int = 0) -> StateReader:
    return StateReader(network(kind), CPU, batch_tokens=batch_tokens)


def random_encoded(rng: np.random.Generator, tokens: int, steps: int, opening: Sequence[int] = ()) -> Encoded:
    """Random tokens behind an opening; the last of them ends the last step."""
    ids = (*opening, *rng.integers(0, 256, tokens - len(opening)).tolist())
    ends = sorted(rng.choice(tokens - 1, steps - 1, replace=False).tolist()) if steps > 1 else []
    return Encoded(tuple(ids), (*ends, tokens - 1))


@functools.cache
def unlike() -> tuple[Encoded, ...]:
    """Trajectories that have nothing in common, of unlike size."""
    rng = np.random.default_rng(3)
    sizes = [(30, 4), (5, 1), (61, 7), (2, 2), (30, 2), (17, 3), (1, 1)]
    some = tuple(random_encoded(rng, tokens, steps) for tokens, steps in sizes)
    assert len({each.ids[0] for each in some}) == len(some)
    return some


@functools.cache
def alike() -> tuple[Encoded, ...]:
    """Attempts at two questions, one of which goes on from another, and two that are the same."""
    rng = np.random.default_rng(4)
    one, other = (tuple(rng.integers(0, 256, size).tolist()) for size in (20, 33))
    some = [random_encoded(rng, tokens, 3, one) for tokens in (25, 40, 28)]
    some += [random_encoded(rng, tokens, 4, other) for tokens in (36, 50, 41, 38)]
    longer = Encoded((*some[0].ids, 7, 8, 9, 10), (*some[0].ends, len(some[0].ids) + 3))
    return (*some[:5], longer, *some[5:], some[1])


def in_trie(encoded: Sequence[Encoded]) -> int:
    """How many different beginnings they have: what is to be read if nothing is read twice."""
    return len({each.ids[:length] for each in encoded for length in range(1, len(each) + 1)})


@torch.inference_mode()
def plain_states(net: StepScorer, encoded: Encoded) -> Tensor:
    """The oracle: one trajectory, one pass, no mask, nothing else."""
    decoder: Any = net.backbone
    states: Tensor = decoder(torch.tensor([encoded.ids])).last_hidden_state[0]
    return states[list(encoded.ends)]


@torch.inference_mode()
def prefix_states(net: StepScorer, encoded: Encoded) -> Tensor:
    """The slow oracle: one pass for each step, over what there is up to its end."""
    decoder: Any = net.backbone
    passes = [decoder(torch.tensor([encoded.ids[: end + 1]])).last_hidden_state[0, -1] for end in encoded.ends]
    return torch.stack(passes)


def found(results: Sequence[StepStates]) -> list[Tensor]:
    assert [result.error for result in results] == [None] * len(results)
    return [result.states for result in results if result.states is not None]


def assert_same(got: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float = 1e-5) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def assert_plain(results: Sequence[StepStates], encoded: Sequence[Encoded], kind: str = "llama") -> None:
    assert_same(found(results), [plain_states(network(kind), each) for each in encoded])


def spy(monkeypatch: pytest.MonkeyPatch, kind: str = "llama") -> list[int]:
    """The tokens, padding included, of every pass through the decoder from now on."""
    decoder: Any = network(kind).backbone
    original, sizes = decoder.forward, []

    @functools.wraps(original)
    def seen(input_ids: Tensor, **inputs: Any) -> Any:
        sizes.append(input_ids.numel())
        return original(input_ids, **inputs)

    monkeypatch.setattr(decoder, "forward", seen)
    return sizes


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_tokens", [0, 1, 40, 64, 130, 10_000])
def test_states_are_those_of_a_plain_pass_whatever_the_batch(kind: str, batch_tokens: int) -> None:
    for encoded in (unlike(), alike(), (*alike(), *unlike())):
        assert_plain(reader(kind, batch_tokens=batch_tokens).read(encoded), encoded, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_equals_a_pass_for_each_step(kind: str) -> None:
    encoded = (*unlike(), *alike())
    wanted = [prefix_states(network(kind), each) for each in encoded]
    assert_same(found(reader(kind).read(encoded)), wanted, 1e-4)


def test_company_and_order_change_nothing() -> None:
    encoded = (*alike(), *unlike())
    assert_plain(reader().read(encoded[::-1]), encoded[::-1])
    assert_plain([reader().read([each])[0] for each in encoded], encoded)
    assert reader().read([]) == []


def test_some_trajectories_are_longer_than_the_windows() -> None:
    """Or the tests of models with windows would show nothing."""
    assert sum(len(each) > 3 * WINDOW for each in unlike()) > 2
    for kind in ("mistral", "gemma3", "exaone4-mixed"):
        config: Any = network(kind).backbone.config  # type: ignore[union-attr]
        assert config.sliding_window == WINDOW


@pytest.mark.parametrize("batch_tokens", [0, 1])
def test_every_trajectory_is_reported_once_as_soon_as_it_is_there(batch_tokens: int) -> None:
    encoded = [*unlike(), Encoded((), ()), *alike()]
    reported: dict[int, StepStates] = {}

    def on_done(index: int, states: StepStates) -> None:
        assert index not in reported
        reported[index] = states

    results = reader(batch_tokens=batch_tokens).read(encoded, on_done)
    assert [reported[index] for index in range(len(encoded))] == results


def test_without_steps_there_is_nothing_to_read() -> None:
    encoded = [unlike()[0], Encoded((), ()), Encoded((1, 2, 3), ()), unlike()[1]]
    results = reader().read(encoded)
    assert [result.error for result in results] == [None, "no steps", "no steps", None]
    assert [result.states is None for result in results] == [False, True, True, False]
    assert results[2].cost.tokens_scored == 0
    assert_plain([results[0], results[3]], [encoded[0], encoded[3]])


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
def test_a_decoder_that_ignores_mask_or_positions_is_given_no_trie(
    ignored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trajectory at a time, so that it needs neither."""
    decoder: Any = network("llama").backbone
    original = decoder.forward

    @functools.wraps(original)
    def deaf(input_ids: Tensor, **inputs: Any) -> Any:
        return original(input_ids, **{key: value for key, value in inputs.items() if key != ignored})

    wanted = [plain_states(network("llama"), each) for each in alike()]
    monkeypatch.setattr(decoder, "forward", deaf)
    assert_same(found(reader(batch_tokens=1).read(alike())), wanted)
    if ignored == "position_ids":  # rectangles need the mask alone
        assert_same(found(reader().read(alike())), wanted)


# --- costs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [0, 1, 70])
def test_costs_add_up_to_the_tokens(batch_tokens: int) -> None:
    results = reader(batch_tokens=batch_tokens).read(unlike())
    assert [result.cost.tokens_scored for result in results] == [len(each) for each in unlike()]
    assert all(result.cost.seconds > 0 for result in results)
    assert all(result.cost.tokens_generated == 0 for result in results)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gemma3", "gpt2"])
def test_what_is_shared_is_read_and_paid_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trie with a wrong mask would be found out when the reader is made, and cost more without a word."""
    able = reader(kind)
    sizes = spy(monkeypatch, kind)
    results = able.read(alike())
    assert sum(sizes) == in_trie(alike()) < 0.6 * sum(map(len, alike()))
    assert sum(result.cost.tokens_scored for result in results) == in_trie(alike())
    assert all(result.cost.tokens_scored > 0 and result.cost.seconds > 0 for result in results)


@pytest.mark.parametrize("kind", ["mamba", "exaone4-mixed"])
def test_models_that_take_no_trie_pay_for_every_token(kind: str) -> None:
    results = reader(kind).read(alike())
    assert [result.cost.tokens_scored for result in results] == [len(each) for each in alike()]


def test_no_cost_is_negative() -> None:
    """50 tokens and then 100 times another: 150 to be read, 1.5 for each."""
    opening = tuple(range(50))
    encoded = [Encoded((*opening, last), (50,)) for last in range(100)]
    assert in_trie(encoded) == 150
    costs = [result.cost.tokens_scored for result in reader().read(encoded)]
    assert sum(costs) == 150
    assert min(costs) >= 0


@pytest.mark.parametrize("batch_tokens", [64, 130])
def test_a_pass_holds_no_more_tokens_than_asked(batch_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    able = reader(batch_tokens=batch_tokens)
    sizes = spy(monkeypatch)
    able.read([*unlike(), *alike()])
    assert max(map(len, [*unlike(), *alike()])) <= max(sizes) <= batch_tokens
    assert len(sizes) > 3


def test_a_trajectory_longer_than_a_pass_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    able = reader(batch_tokens=20)
    sizes = spy(monkeypatch)
    assert_plain(able.read(unlike()), unlike())
    sizes = sizes[: -len(unlike())]  # the oracle's own passes
    assert sorted(size for size in sizes if size > 20) == [30, 30, 61]


# --- out of memory --------------------------------------------------------------------------------------------------


def out_of_memory() -> BaseException:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def limit_batches(
    monkeypatch: pytest.MonkeyPatch, tokens: int, error: Callable[[], BaseException] = out_of_memory
) -> None:
    """Rectangles with more tokens than that run out of memory."""
    original = StepScorer.states

    def states(self: StepScorer, input_ids: Tensor, attention_mask: Tensor | None, ends: Tensor) -> Tensor:
        if input_ids.numel() > tokens:
            raise error()
        return original(self, input_ids, attention_mask, ends)

    monkeypatch.setattr(StepScorer, "states", states)


def limit_decoder(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Any pass, also over a trie, with more tokens than that runs out of memory."""
    decoder: Any = network("llama").backbone
    original = decoder.forward

    @functools.wraps(original)
    def within(input_ids: Tensor, **inputs: Any) -> Any:
        if input_ids.numel() > tokens:
            raise out_of_memory()
        return original(input_ids, **inputs)

    monkeypatch.setattr(decoder, "forward", within)


@pytest.mark.parametrize("limit", [61, 65, 100, 150])
def test_out_of_memory_goes_on_with_smaller_batches(
    limit: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    able = reader()
    limit_batches(monkeypatch, limit)
    results = able.read(unlike())
    assert_plain(results, unlike())
    assert [result.cost.tokens_scored for result in results] == [len(each) for each in unlike()]
    lines = [record.message for record in caplog.records]
    whole = 61 * len(unlike())
    assert lines[0] == f"out of memory with {whole} tokens at a time; going on with fewer"
    caplog.clear()
    assert_plain(able.read(unlike()), unlike())
    assert not caplog.records  # it has learned what fits


def test_what_is_too_large_alone_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    able = reader()
    limit_batches(monkeypatch, 60)
    results = able.read(unlike())
    assert [result.error for result in results] == [
        "out of memory with 61 tokens" if len(each) == 61 else None for each in unlike()
    ]
    rest = [index for index, each in enumerate(unlike()) if len(each) < 61]
    assert_plain([results[index] for index in rest], [unlike()[index] for index in rest])
    assert results[2].states is None
    assert results[2].cost.tokens_scored == 0


@pytest.mark.parametrize("limit", [50, 60])
def test_tries_that_do_not_fit_are_read_apart(
    limit: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The two questions make two tries; where the larger does not fit, no other of more than half its size is tried."""
    wanted = [plain_states(network("llama"), each) for each in alike()]
    able = reader()
    limit_decoder(monkeypatch, limit)
    assert_same(found(able.read(alike())), wanted)
    sizes = [66, 57]
    assert sum(sizes) == in_trie(alike())
    assert caplog.records[0].message == "out of memory with 66 tokens at a time; going on with fewer"
    assert "57 tokens" not in caplog.text


def test_an_error_of_another_kind_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    able = reader()
    limit_batches(monkeypatch, 60, lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        able.read(unlike())


def test_out_of_memory_on_a_cpu_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    able = reader()
    text = (
        "[enforce fail at alloc_cpu.cpp:113] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    )
    limit_batches(monkeypatch, 61, lambda: RuntimeError(text))
    assert_plain(able.read(unlike()), unlike())


# --- the cache ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "features"


def cache_of(folder: Path, revision: str | None = "abc", dtype: str = "float32") -> FeatureCache:
    cache = FeatureCache(folder)
    cache.require(revision, dtype)
    return cache


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("states-*.safetensors"))


def test_what_is_cached_is_not_computed_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, cache, able = [*unlike(), *alike()], cache_of(folder), reader()
    first = cache.states(encoded, able)
    assert_plain(first, encoded)
    assert sum(result.cost.tokens_scored for result in first) > 0
    sizes = spy(monkeypatch)
    for again in (cache, cache_of(folder)):  # and by another process
        done: list[StepStates] = []
        second = again.states(encoded, able, done.append)
        for one, other in zip(found(second), found(first), strict=True):
            assert torch.equal(one, other)
        assert [result.cost.tokens_scored for result in second] == [0] * len(encoded)
        assert not done
    assert not sizes
    assert len(cache_of(folder)) == len(set(encoded))
    assert len(shards(folder)) == 1


def test_only_what_is_missing_is_computed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, able = cache_of(folder), reader()
    cache.states(unlike()[:3], able)
    sizes = spy(monkeypatch)
    results = cache_of(folder).states(unlike()[::-1], able)
    assert sum(result.cost.tokens_scored for result in results) == sum(map(len, unlike()[3:]))
    assert 0 < sum(sizes) <= max(map(len, unlike()[3:])) * len(unlike()[3:])
    assert_plain(results, unlike()[::-1])
    assert len(cache_of(folder)) == len(unlike())


def test_other_step_ends_are_other_states(folder: Path) -> None:
    ids = unlike()[0].ids
    cache, encoded = cache_of(folder), [Encoded(ids, (3, 29)), Encoded(ids, (4, 29)), Encoded(ids, (29,))]
    for each in encoded:
        cache.states([each], reader())
    assert_plain(cache_of(folder).states(encoded, reader()), encoded)


def test_bfloat16_states_stay_as_they_are(folder: Path) -> None:
    half = StepScorer(decoder_of(tiny_model("llama").bfloat16(), "llama"), nn.Linear(HIDDEN, 1)).eval()
    first = found(cache_of(folder, dtype="bfloat16").states(unlike(), StateReader(half, CPU)))
    second = found(cache_of(folder, dtype="bfloat16").states(unlike(), reader()))  # which is never asked
    assert {each.dtype for each in (*first, *second)} == {torch.bfloat16}
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_many_trajectories_are_written_as_they_come(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_AT_A_TIME", 3)
    seen: list[int] = []
    cache = cache_of(folder)
    cache.states(unlike(), reader(batch_tokens=1), lambda _: seen.append(len(shards(folder))))
    assert seen == [0, 0, 0, 1, 1, 1, 2]
    assert len(shards(folder)) == 3
    assert_plain(cache_of(folder).states(unlike(), reader()), unlike())


class Killed(BaseException):
    """As if the process ended here."""


@pytest.mark.parametrize(("at", "kept"), [(1, 0), (3, 0), (4, 3), (7, 6)])
def test_a_kill_loses_nothing_that_was_written(
    at: int, kept: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_AT_A_TIME", 3)
    done: list[StepStates] = []

    def kill(states: StepStates) -> None:
        done.append(states)
        if len(done) == at:
            raise Killed

    with pytest.raises(Killed):
        cache_of(folder).states(unlike(), reader(batch_tokens=1), kill)
    cache = cache_of(folder)
    assert len(cache) == kept
    rest: list[StepStates] = []
    assert_plain(cache.states(unlike(), reader(), rest.append), unlike())
    assert len(rest) == len(unlike()) - kept


def test_a_kill_while_a_file_is_written_leaves_no_broken_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_AT_A_TIME", 3)
    cache_of(folder)
    original = Path.write_bytes

    def torn(self: Path, content: bytes) -> int:
        if shards(folder):
            original(self, content[: len(content) // 2])
            raise Killed
        return original(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", torn)
        with pytest.raises(Killed):
            cache_of(folder).states(unlike(), reader(batch_tokens=1))
    assert len(cache_of(folder)) == 3
    assert_plain(cache_of(folder).states(unlike(), reader()), unlike())


def test_what_failed_is_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        able = reader()
        limit_batches(patch, 60)
        errors = [result.error for result in cache_of(folder).states(unlike(), able)]
        assert errors == ["out of memory with 61 tokens" if len(each) == 61 else None for each in unlike()]
    assert len(cache_of(folder)) == len(unlike()) - 1
    assert_plain(cache_of(folder).states(unlike(), reader()), unlike())


def refused(folder: Path, revision: str = "abc", dtype: str = "float32") -> str:
    with pytest.raises(InputError) as raised:
        cache_of(folder, revision, dtype)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_another_decoder_is_refused(folder: Path) -> None:
    cache_of(folder).states(unlike(), reader())
    line = refused(folder, "xyz")
    assert line.startswith(f"{folder} holds features of another decoder (")
    assert "'abc'" in line
    assert "'xyz'" in line
    line = refused(folder, dtype="bfloat16")
    assert "'float32'" in line
    assert "'bfloat16'" in line
    assert len(cache_of(folder)) == len(unlike())


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    for place in (tmp_path, tmp_path / "notes.txt"):
        assert refused(place) == f"{place} holds no cached features; choose another --features"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_begun(folder: Path) -> None:
    folder.mkdir()
    cache_of(folder).states(unlike(), reader())
    assert len(cache_of(folder)) == len(unlike())


@pytest.mark.parametrize("broken", ["cut", "empty", "other"])
def test_a_broken_file_is_refused_and_can_be_removed(broken: str, folder: Path) -> None:
    cache_of(folder).states(unlike(), reader())
    (file,) = shards(folder)
    whole = file.read_bytes()
    contents = {"cut": whole[: len(whole) // 2], "empty": b"", "other": b"no tensors at all, but some text"}
    file.write_bytes(contents[broken])
    line = refused(folder)
    assert line.startswith(f"{file}: broken (")
    assert line.endswith("remove it, and its features are computed again")
    file.unlink()
    assert len(cache_of(folder)) == 0
    assert_plain(cache_of(folder).states(unlike(), reader()), unlike())


def test_a_broken_manifest_is_refused(folder: Path) -> None:
    cache_of(folder).states(unlike(), reader())
    (folder / "manifest.json").write_text('{"format": 1,', encoding="utf-8")
    assert str(folder) in refused(folder)


# --- a reward model with a cache ------------------------------------------------------------------------------------

SOME = (
    Trajectory("What is 2+2-1?", ("2 + 2 = 4.", "4 - 1 = 3.", "So the answer is 3.")),
    Trajectory("Name a prime.", ("7",)),
    Trajectory("What is 2+2-1?", ("2 + 2 = 4.", "4 - 1 = 5.", "Check.", "So the answer is 5.")),
    Trajectory("Why?", ()),
    Trajectory("Why not?", ("x" * 300,)),
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("prm")
    config_class, fields = CONFIGS["llama"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, config_class)(**fields, num_labels=2)
        model: Any = transformers.LlamaForTokenClassification(config)  # type: ignore[no-untyped-call]
    model.save_pretrained(place)
    byte_tokenizer(bos=True).save_pretrained(place)
    return place


def opened(saved: Path, cache: FeatureCache | None, dtype: str = "auto") -> PRM:
    settings = ModelSettings(str(saved), device="cpu", dtype=dtype)
    return PRM(open_checkpoint(settings), settings, cache=cache)


def test_a_cache_changes_no_reward(saved: Path, folder: Path) -> None:
    plain = opened(saved, None).rewards(SOME)
    assert [record.error is None for record in plain] == [True, True, True, False, False]
    assert np.ptp(np.concatenate([record.rewards for record in plain])) > 0.1
    for tokens in (sum(record.cost.tokens_scored for record in plain), 0):  # computed, then from disk
        cached = opened(saved, FeatureCache(folder)).rewards(SOME)
        assert [record.error for record in cached] == [record.error for record in plain]
        assert sum(record.cost.tokens_scored for record in cached) == tokens
        for one, other in zip(cached, plain, strict=True):
            np.testing.assert_allclose(one.rewards, other.rewards, rtol=0, atol=1e-6)
    assert len(FeatureCache(folder)) == 3


def test_a_model_refuses_the_cache_of_another(saved: Path, folder: Path) -> None:
    opened(saved, FeatureCache(folder)).rewards(SOME)
    with pytest.raises(InputError, match="holds features of another decoder"):
        opened(saved, FeatureCache(folder), dtype="bfloat16")
    cache_of(folder.with_name("other"))
    with pytest.raises(InputError, match="holds features of another decoder"):
        opened(saved, FeatureCache(folder.with_name("other")))
