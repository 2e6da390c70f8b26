import numpy as np
import pytest

from rlhf.errors import UserError
from rlhf.rewards.cost_matrix import CostMatrix, cost_matrix, read_cost_matrix

CSV = "right \\ answer,lost,refund,hand_over\nlost,0,5,1\nrefund,2,-0.5,1\n"
YAML = "default: 2\nanswers: {hand_over: 1}\ncosts: {lost: {refund: 5}, refund: {refund: -0.5}}\n"


@pytest.fixture(params=["costs.csv", "costs.yaml"])
def file(request, tmp_path):
    path = tmp_path / request.param
    path.write_text(CSV if path.suffix == ".csv" else YAML)
    return path


def written(folder, text, suffix=".csv"):
    path = folder / f"costs{suffix}"
    path.write_text(text)
    return path


def test_minus_the_cost_of_the_answer_where_a_class_is_right(file):
    replies = ["lost", "refund", "hand_over", "lost", " refund ", "lost"]
    labels = ["lost", "lost", "lost", "refund", "refund", None]
    assert cost_matrix(["q"] * 6, replies, file, label=labels) == [0, -5, -1, -2, 0.5, None]
    assert cost_matrix(["q"], ["refund"], file, column="intent", intent=["lost"], label=["refund"]) == [-5]


def test_the_least_expected_cost_by_hand(file):
    """P(lost) = 0.2: lost costs 0.8 * 2, refund 0.2 * 5 - 0.8 * 0.5, a hand-over 1."""
    costs = read_cost_matrix(file)
    probabilities = [[0.2, 0.8], [0.5, 0.5], [0.8, 0.2]]
    expected = [[1.6, 0.6, 1.0], [1.0, 2.25, 1.0], [0.4, 3.9, 1.0]]
    assert costs.answers_for(["lost", "refund"]) == ("lost", "refund", "hand_over")
    np.testing.assert_allclose(costs.expected_costs(probabilities, ["lost", "refund"]), expected)
    assert costs.best_answer(probabilities, ["lost", "refund"]) == ["refund", "lost", "lost"]
    assert costs.best_answer([[0.55, 0.45]], ["lost", "refund"]) == ["lost"]
    assert costs.best_answer([[0.4, 0.6]], ["lost", "refund"]) == ["hand_over"]


def test_the_order_of_a_models_classes_is_free(file):
    costs = read_cost_matrix(file)
    np.testing.assert_allclose(
        costs.expected_costs([[0.8, 0.2]], ["refund", "lost"]),
        costs.expected_costs([[0.2, 0.8]], ["lost", "refund"])[:, [1, 0, 2]],
    )


def test_where_all_errors_cost_the_same_the_likeliest_class_is_best():
    costs = CostMatrix({}, default=1)
    probabilities_BC = np.random.default_rng(0).dirichlet(np.ones(4), 50)
    assert costs.best_answer(probabilities_BC, list("abcd")) == ["abcd"[best] for best in probabilities_BC.argmax(1)]


def test_an_answer_that_nobody_planned_costs_as_much_as_the_worst(tmp_path):
    from_csv = read_cost_matrix(written(tmp_path, CSV))
    assert (from_csv.cost("lost", "I think"), from_csv.cost("refund", "")) == (5, 2)
    listed = read_cost_matrix(written(tmp_path, f"classes: [lost, refund]\n{YAML}", ".yaml"))
    assert (listed.cost("lost", "I think"), listed.cost("refund", "")) == (5, 2)
    assert read_cost_matrix(written(tmp_path, YAML, ".yaml")).cost("stolen", "late") == 2


def test_the_matrices_of_the_documentation(root, tmp_path):
    text = (root / "docs/rewards.md").read_text().partition("### A cost matrix")[2]
    from_csv, from_yaml = (
        read_cost_matrix(written(tmp_path, text.partition(fence)[2].partition("```")[0], suffix))
        for fence, suffix in (("```text", ".csv"), ("```yml", ".yaml"))
    )
    assert from_csv.answers == from_yaml.answers == ("card_lost", "refund", "hand_over")
    for costs, hand_over in ((from_csv, 1), (from_yaml, 0.1)):
        assert [costs.cost("card_lost", answer) for answer in costs.answers] == [0, 5, hand_over]


def test_names_may_be_numbers_and_words_of_yaml(tmp_path):
    costs = read_cost_matrix(written(tmp_path, "default: 1\ncosts: {3: {no: 7}}\n", ".yml"))
    assert [costs.cost("3", answer) for answer in ("no", "3", "4")] == [7, 0, 1]


def test_an_edited_file_is_read_again(tmp_path):
    path = written(tmp_path, CSV)
    assert cost_matrix(["q"], ["refund"], path, label=["lost"]) == [-5]
    written(tmp_path, CSV.replace("5,1", "50,1"))
    assert cost_matrix(["q"], ["refund"], path, label=["lost"]) == [-50]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "costs.csv: expected answers"),
        (",a\n", "costs.csv: expected answers"),
        (",a,b\na,0,1\nb,1\n", "costs.csv:3: row 'b' has 1 costs for 2 answers"),
        (",a,b\na,0,1,2\n", "costs.csv:2: row 'a' has 3 costs for 2 answers"),
        (",a,b\na,0,x\nb,1,0\n", "costs.csv:2: column 'b': a cost is a number, not 'x'"),
        (",a,b\na,0,\nb,1,0\n", "costs.csv:2: column 'b': a cost is a number, not ''"),
        (",a,b\na,0,nan\nb,1,0\n", "costs.csv:2: column 'b': a cost is a number, not 'nan'"),
        (",a,b\na,0,1\nbb,1,0\n", "costs.csv:3: the class 'bb' has no column"),
        (",a,b\na,0,1\n\na,1,0\n", "costs.csv:4: the class 'a' is there twice"),
        (",a,a\na,0,1\n", "costs.csv:1: the answer 'a' is there twice"),
        (",a,\na,0,1\n", "costs.csv:1: an answer has no name"),
    ],
)
def test_a_bad_csv_is_one_line_with_row_and_column(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        read_cost_matrix(written(tmp_path, text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "costs.yaml:1:5: no YAML"),
        ("- a\n", "costs.yaml: expected names and values"),
        ("right: 0\n", "say with default"),
        ("default: much\n", "default: a cost is a number, not 'much'"),
        ("default: true\n", "default: a cost is a number, not 'True'"),
        ("default: 1\nrigth: 0\n", "unknown key 'rigth'; did you mean 'right'"),
        ("default: 1\ncosts: {a: 3}\n", "costs: a: expected names and values, not '3'"),
        ("default: 1\ncosts: {a: {b: c}}\n", "costs: a: b: a cost is a number"),
        ("default: 1\nclasses: a\n", "classes: expected a list"),
        ("default: 1\nclasses: [a, b]\nanswers: {b: 1}\n", "answers: 'b' is a class"),
        ("default: 1\nclasses: [card, b]\ncosts: {crad: {b: 1}}\n", "'crad' is no class; did you mean 'card'"),
        ("default: 1\nclasses: [card, b]\ncosts: {b: {crad: 1}}\n", "'crad' is neither .* did you mean 'card'"),
    ],
)
def test_a_bad_yaml_is_one_line_with_the_key(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        read_cost_matrix(written(tmp_path, text, ".yaml"))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv: no such file"):
        cost_matrix([], [], tmp_path / "none.csv")
    path = tmp_path / "costs.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"costs\.csv: cannot be read"):
        cost_matrix([], [], path)


def test_what_does_not_fit_the_data_or_the_model_is_refused(tmp_path):
    path = written(tmp_path, CSV)
    with pytest.raises(UserError, match=r"costs\.csv: no costs for the right class 'losst'; did you mean 'lost'"):
        cost_matrix(["q"], ["lost"], path, label=["losst"])
    with pytest.raises(UserError, match="for one right class, but column 'label' has lost, refund"):
        cost_matrix(["q"], ["lost"], path, label=[["lost", "refund"]])
    with pytest.raises(UserError, match="no costs for the right class 'stolen'"):
        read_cost_matrix(path).best_answer([[1, 0]], ["lost", "stolen"])
    with pytest.raises(UserError, match="'refund' is neither a class nor under answers"):
        read_cost_matrix(written(tmp_path, YAML, ".yaml")).best_answer([[1, 0]], ["lost", "refunds"])
