"""Without Slurm: what profiles say to sbatch, what is refused, what a dry run shows, and what
preflight says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cser_bench.harness.spec.errors import SpecError
from cser_bench.slurm import submit
from cser_bench.slurm.campaign import CampaignError
from cser_bench.slurm.job import ALL_WELL
from cser_bench.slurm.profile import (
    CLUSTERS,
    Profile,
    SubmissionPaths,
    array_parameters,
    load_profile,
    sbatch_text,
)
from cser_bench.slurm.submit import array_sizes, wait_for_preflight
from tests.harness.support import CommandLine, small_spec, write_spec
from tests.slurm.support import small_profile, write_profile

STORED = Path(__file__).parent / "sbatch"
SHARED = Path("/shared/results/imagenet")
PLACE = SubmissionPaths(
    SHARED / "jobs" / "000",
    SHARED / "code" / "0123456789ab",
    SHARED / "campaign.json",
    0,
)


def array_text(profile: Profile, num_runs: int) -> str:
    return sbatch_text(
        profile, PLACE, array_parameters(profile, "imagenet", PLACE), num_runs
    )


TEMPLATE = str(CLUSTERS.parent / "template.toml")
"""The file for people to copy."""
STORED_OF = {
    "full": str(STORED / "full.toml"),
    "local": "local",
    "v100": "v100",
    "v100-2x4": "v100:2x4",
}
"""By script, the profile: one that has every field, those that ship, and a variant."""


@pytest.mark.parametrize("script", STORED_OF)
def test_text_for_sbatch_is_the_stored_one(
    script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/python/bin/python")
    profile = load_profile(STORED_OF[script])
    assert array_text(profile, 80) + "\n" == (STORED / f"{script}.sh").read_text()


@pytest.mark.parametrize("name", [TEMPLATE, f"{TEMPLATE}:2x4", "v100:1x8"])
def test_other_profiles_ask_for_the_eight_workers_of_the_experiments(name: str) -> None:
    profile = load_profile(name)
    lines = array_text(profile, 1).splitlines()
    assert profile.num_workers == 8
    assert f"#SBATCH --nodes={profile.nodes}" in lines
    assert f"#SBATCH --ntasks-per-node={profile.workers_per_node}" in lines


@pytest.mark.parametrize(
    ("name", "offered_gb"), [("v100", 61), ("v100:2x4", 244), ("v100:1x8", 488)]
)
def test_aws_nodes_of_the_shape_can_give_the_memory_that_is_asked_for(
    name: str, offered_gb: int
) -> None:
    """Slurm offers what a node has less what the system and the site keep: 5 % and a GB are
    usual."""
    profile = load_profile(name)
    assert profile.num_workers == 8
    assert int(str(profile.sbatch["mem"]).rstrip("G")) <= 0.95 * offered_gb - 1


def test_what_modules_put_into_pythonpath_stays_behind_the_snapshot() -> None:
    line = next(
        line
        for line in array_text(load_profile("local"), 1).splitlines()
        if "PYTHONPATH" in line
    )
    for before, after in (
        ("/opt/modules/lib", f"{PLACE.code}:/opt/modules/lib"),
        (None, str(PLACE.code)),
    ):
        environment = {} if before is None else {"PYTHONPATH": before}
        said = subprocess.check_output(
            ["sh", "-c", f"{line}; echo $PYTHONPATH"], env=environment, text=True
        )
        assert said == f"{after}\n"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"node": 2}, "unknown key 'node'"),
    ({"nodes": 0}, "nodes: "),
    ({"time_limit_minutes": 5, "warning_seconds": 300}, "leaves no time to work"),
    ({"sbatch": {"array": "1-2"}}, "which campaigns set themselves"),
    ({"sbatch": {"comment": "a\ntouch b"}}, "sbatch.comment has a line break"),
    ({"sbatch": {"comment": "a\rtouch b"}}, "sbatch.comment has a line break"),
    ({"launch_prefix": "apptainer exec\nimage.sif"}, "launch_prefix has a line break"),
    ({"variants": {"big": {"nodez": 1}}}, "unknown key 'nodez'"),
    (
        {"sbatch": "x", "variants": {"big": {"nodes": 1}}},
        "sbatch: Input should be a valid dictionary",
    ),
    (
        {"sbatch": "x", "variants": {"big": {"sbatch": {"mem": "1G"}}}},
        "sbatch: Input should be a valid dictionary",
    ),
    (
        {"variants": {"big": {"sbatch": 3}}},
        "sbatch: Input should be a valid dictionary",
    ),
]


@pytest.mark.parametrize(
    ("change", "words"), BAD, ids=[str(change) for change, _ in BAD]
)
def test_profile_that_cannot_be_used_is_refused_in_a_sentence(
    change: dict[str, Any], words: str, tmp_path: Path, cli: CommandLine
) -> None:
    path = write_profile(tmp_path, small_profile() | change)
    with pytest.raises(SpecError) as caught:
        load_profile(str(path))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_profile_and_variant_name_those_there_are() -> None:
    with pytest.raises(
        SpecError, match=r"no cluster profile 'template': .*one of local, v100$"
    ):
        load_profile("template")
    with pytest.raises(SpecError, match=r"no variant '3x3'; it has 2x4, 1x8"):
        load_profile("v100:3x3")


# The command


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty path: there is no sbatch on it."""
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.delenv("SLURM_CONF", raising=False)


@pytest.mark.usefixtures("no_slurm")
def test_dry_run_needs_no_slurm_and_leaves_nothing(
    tmp_path: Path, cli: CommandLine
) -> None:
    spec = write_spec(tmp_path, small_spec())
    profile = write_profile(tmp_path, small_profile())
    results = tmp_path / "results"
    words = ["submit", spec, "--cluster", profile, "--results", results, "--dry-run"]
    text = cli.out(*words)
    assert "#SBATCH --array=0-5%2" in text
    assert f"{results}/small/campaign.json 0 3 $?" in text
    assert (
        f"to submit on {profile}: 6 runs of 2 nodes x 1 workers, at most 2 at once"
        in text
    )
    assert text.index("CPU core hours for forward") < text.index(
        "0 others are done, queued or running"
    )
    assert "first preflight, a job in the shape of a run, for 10 min at most" in text
    assert text.index("#SBATCH --job-name=small-preflight\n") < text.index(
        "#SBATCH --job-name=small\n"
    )
    assert "preflight" not in cli.out(*words, "--no-preflight")
    assert not results.exists()


@pytest.mark.usefixtures("no_slurm")
def test_dry_run_on_gpus_shows_hours_dollars_and_as_many_arrays_as_a_cluster_wants(
    tmp_path: Path, cli: CommandLine
) -> None:
    """A stock Slurm takes arrays of 1001 tasks; a site's own MaxArraySize is asked for."""
    text = cli.out(
        "submit",
        "cifar100",
        "--cluster",
        "v100",
        "--results",
        tmp_path / "results",
        "--dry-run",
    )
    said = [
        "hours on 8 GPUs",
        "dollars on 8 x p3.2xlarge",
        "for 20 min at most",
        "1640 runs of 8 nodes x 1 workers",
    ]
    said += [
        "#SBATCH --job-name=cifar100-preflight\n",
        "--array=0-1000%4\n",
        "--array=0-638%4\n",
    ]
    assert [text.index(words) for words in said] == sorted(
        text.index(words) for words in said
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "scontrol").write_text(
        "#!/bin/sh\necho 'MaxArraySize            = 4001'\n"
    )
    (tmp_path / "empty" / "scontrol").chmod(0o755)
    assert array_sizes(1640) == [1640]


@pytest.mark.usefixtures("no_slurm")
@pytest.mark.parametrize(
    ("changes", "words", "error"),
    [
        ({}, [], "sbatch is not on the path"),
        ({"nodes": 3}, ["--dry-run"], "gives 3 nodes x 1 = 3 workers, small has 2"),
    ],
)
def test_mistakes_of_the_user_are_one_line_and_exit_with_2(
    changes: dict[str, Any],
    words: list[str],
    error: str,
    tmp_path: Path,
    cli: CommandLine,
) -> None:
    spec = write_spec(tmp_path, small_spec())
    profile = write_profile(tmp_path, small_profile(**changes))
    said = cli.refused(
        "submit", spec, "--cluster", profile, "--results", tmp_path / "results", *words
    )
    assert error in said
    assert not (tmp_path / "results").exists()


# Preflight


def test_what_all_ranks_say_is_told_once_and_what_fails_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = [tmp_path / "rank0.log", tmp_path / "rank1.log"]
    well = f"ok   network: 9 Gb/s (on node0)\nan aside\n{ALL_WELL}\n"
    for log in logs:
        log.write_text(well)
    assert wait_for_preflight("12", logs)
    assert capsys.readouterr().out == "ok   network: 9 Gb/s (on node0)\n"
    logs[1].write_text("FAIL data: it is not there (on node1)\n")
    words = (
        "preflight fails on the compute nodes: FAIL data: it is not there (on node1) (see "
        f"{logs[0]})"
    )
    with pytest.raises(CampaignError, match=re.escape(words)):
        wait_for_preflight("12", logs)


def test_job_that_ends_without_an_answer_is_said_to_and_one_that_waits_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "LATE_SECONDS", 0.0)
    monkeypatch.setattr(submit.campaign, "queued_jobs", lambda: {})
    with pytest.raises(
        CampaignError, match="the preflight job 12 ended without an answer"
    ):
        wait_for_preflight("12", [tmp_path / "log"])
    monkeypatch.setattr(submit, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(submit.campaign, "queued_jobs", lambda: {"12": "PENDING"})
    assert not wait_for_preflight("12", [tmp_path / "log"])
