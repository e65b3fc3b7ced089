"""Templates and trees: boundaries exact by construction, every sequence where it belongs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpmi.errors import InputError
from cpmi.models.toy import ToyModel
from cpmi.prompts import (
    CUES,
    INSTRUCTIONS,
    ContextKind,
    Template,
    TreeBuilder,
    load_templates,
    plan_scoring,
    step_contexts,
)
from cpmi.protocols import TokenTree


def text_of(tree: TokenTree, nodes: list[int]) -> str:
    return bytes(tree.ids[nodes].tolist()).decode()


def test_contexts_of_three_steps_worked_out() -> None:
    assert step_contexts("marginal", 3) == [((0,), ()), ((1,), ()), ((2,), ())]
    assert step_contexts("cumulative", 3) == [((0,), ()), ((0, 1), (0,)), ((0, 1, 2), (0, 1))]
    everything = (0, 1, 2)
    assert step_contexts("leave-one-out", 3) == [(everything, (1, 2)), (everything, (0, 2)), (everything, (0, 1))]


words = st.text("ab", min_size=1, max_size=4)


@given(
    kind=st.sampled_from(["marginal", "cumulative", "leave-one-out"]),
    steps=st.lists(words, min_size=1, max_size=4),
    answers=st.lists(words, min_size=1, max_size=3),
    span=st.sampled_from(["target", "answer"]),
)
def test_every_answer_stands_behind_exactly_its_context(
    kind: ContextKind, steps: list[str], answers: list[str], span: str
) -> None:
    """Read back from the tree, each sequence is the text that a plain scorer would be given."""
    templates = [Template("Q {question}: ", "A={answer}."), Template("Q {question}: ", "so {answer}"), *INSTRUCTIONS]
    contexts = list(dict.fromkeys(c for pair in step_contexts(kind, len(steps)) for c in pair))
    plans = plan_scoring(
        "q?", steps, answers, contexts, templates, ToyModel(), "answer" if span == "answer" else "target"
    )
    assert [len(plan.spans) for plan in plans] == [2, 1, 1, 1, 1]  # the first two share their instruction
    flat = [(plan.tree, spans) for plan in plans for spans in plan.spans]
    for template, (tree, spans) in zip(templates, flat, strict=True):
        assert list(spans) == contexts
        for context, nodes_by_answer in spans.items():
            shown = "".join(steps[t] + "\n\n" for t in context)
            for answer, nodes in zip(answers, nodes_by_answer, strict=True):
                cue, _, after = template.cue.partition("{answer}")
                assert text_of(tree, tree.path(int(nodes[-1]))) == template.opening("q?") + shown + cue + answer + after
                scored = cue + answer + after if span == "target" else cue[len(cue.rstrip()) :] + answer + after
                assert text_of(tree, nodes.tolist()) == scored
                assert tree.scored[nodes].all()


def test_only_what_belongs_to_an_answer_is_scored() -> None:
    (plan,) = plan_scoring("q", ["s"], ["1"], [(), (0,)], [Template("{question}\n", "={answer}")], ToyModel())
    scored = "".join(chr(token) for token in plan.tree.ids[plan.tree.scored].tolist())
    assert scored == "=1=1"
    assert text_of(plan.tree, list(range(len(plan.tree)))) == "q\ns\n\n=1=1"  # preorder: a subtree is a slice


def test_shared_beginnings_are_there_once() -> None:
    """K cues on one instruction add their own tokens only: the trunk of question and steps is not repeated."""
    steps = ["x" * 100, "y" * 100]
    contexts = [(), (0,), (0, 1)]
    one = plan_scoring("q", steps, ["7"], contexts, CUES[:1], ToyModel())
    four = plan_scoring("q", steps, ["7"], contexts, CUES, ToyModel())
    assert len(four) == 1
    added = len(four[0].tree) - len(one[0].tree)
    cue_bytes = [len(template.cue.replace("{answer}", "7")) for template in CUES[1:]]
    assert added <= 3 * sum(cue_bytes)
    assert len(plan_scoring("q", steps, ["7"], contexts, INSTRUCTIONS, ToyModel())) == 4


def test_an_answer_that_begins_another_shares_its_tokens() -> None:
    builder = TreeBuilder()
    (root,) = builder.insert(-1, [0])
    short, long = builder.insert(root, [1, 2], scored=True), builder.insert(root, [1, 2, 3], scored=True)
    tree, index = builder.build()
    assert len(tree) == 4
    assert index[short].tolist() == index[long][:2].tolist()


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=8))
def test_a_built_tree_holds_every_inserted_sequence(sequences: list[list[int]]) -> None:
    builder = TreeBuilder()
    (root,) = builder.insert(-1, [9])
    paths = [builder.insert(root, sequence, scored=True) for sequence in sequences]
    tree, index = builder.build()
    for sequence, nodes in zip(sequences, paths, strict=True):
        path = tree.path(int(index[nodes[-1]]))
        assert tree.ids[path].tolist() == [9, *sequence]
        assert (tree.depths()[path] == np.arange(len(path))).all()


@pytest.mark.parametrize(
    ("parents", "scored", "message"),
    [
        ([-1, 0, 0, 1], [0, 1, 1, 1], "not an ancestor of the node before it"),
        ([1, -1], [0, 0], "not an ancestor"),
        ([-1, 0], [1, 0], "a root has no ancestors"),
        ([-1], [0, 0], "one length"),
    ],
)
def test_what_is_no_tree_in_preorder_is_refused(parents: list[int], scored: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenTree(np.zeros(len(parents), dtype=np.int64), np.array(parents), np.array(scored, dtype=np.bool_))


def test_built_in_sets_have_four_templates_and_cues_share_one_instruction() -> None:
    assert len(INSTRUCTIONS) == len({template.instruction for template in INSTRUCTIONS}) == 4
    assert len(CUES) == len({template.cue for template in CUES}) == 4
    assert len({template.instruction for template in CUES}) == 1
    assert load_templates("cues", 2) == CUES[:2]


def test_templates_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{"instruction": "{question}?", "cue": "\\boxed{{answer}}"}]))
    (template,) = load_templates(str(path))
    assert template.target("7") == ("\\boxed{", "7}")
    path.write_text(json.dumps([{"instruction": "no placeholder", "cue": "{answer}"}]))
    with pytest.raises(InputError, match=r"holds \{question\} once"):
        load_templates(str(path))
    path.write_text(json.dumps([{"prompt": "x"}]))
    with pytest.raises(InputError, match="expected a list of objects"):
        load_templates(str(path))
    with pytest.raises(InputError, match="neither a built-in set"):
        load_templates(str(tmp_path / "none.json"))
    with pytest.raises(InputError, match="has 4 templates, 5 asked for"):
        load_templates("cues", 5)


def test_the_space_before_an_answer_goes_with_the_answer() -> None:
    assert Template("{question}", "The answer is: {answer}.").target("42") == ("The answer is:", " 42.")
