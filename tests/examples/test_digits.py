import numpy as np

from examples.digits.train import HELD_OUT, LABELLED, Outcome, line, main


def test_it_runs_and_both_policies_answer_the_same_held_out_images(tmp_path, capsys):
    (outcome,) = main(["--budget", "small", "--seeds", "0", "--work", str(tmp_path)])
    assert outcome.sft_N.shape == outcome.ppo_N.shape == (40,)
    assert set(np.concatenate(outcome)) <= {0.0, 1.0}
    counts = {name: len(list((tmp_path / name).glob("*/*.png"))) for name in ("held_out", "labelled", "rewarded")}
    assert counts == {"held_out": HELD_OUT, "labelled": LABELLED, "rewarded": 1797 - HELD_OUT - LABELLED}
    assert capsys.readouterr().out.splitlines()[-1].startswith("all")


def test_a_line_has_both_accuracies_and_their_difference():
    outcome = Outcome(np.array([1.0, 0, 0, 0] * 100), np.array([1.0, 1, 0, 0] * 100))
    name, sft, ppo, difference, *interval = line("seed", outcome).split()
    assert (name, sft, ppo, difference) == ("seed", "25.0%", "50.0%", "+25.0")
    assert 20 < float(interval[0].strip("[,")) < 25 < float(interval[1].strip("]")) < 30
