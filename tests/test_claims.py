"""Claims: the first to tell a fact settles it, one holds a claim, and the dead hold none."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sgc_experiments.claims import Claims


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'claims.db'}"
    server = request.getfixturevalue("postgres_server")
    return server.url(server.new_database())


def test_of_many_who_tell_a_fact_at_once_one_counts(url):
    def tell(number):
        return Claims(url, "scope", lost_after=10).settle("run", str(number))

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(tell, range(8)))
    assert len(set(told)) == 1
    claims = Claims(url, "scope", lost_after=10)
    assert claims.known("run")
    assert claims.settle("run", "late") == told[0]
    assert Claims(url, "another", lost_after=10).settle("run", "own") == "own"


def test_a_fact_is_replaced_by_one_only(url):
    claims = Claims(url, "scope", lost_after=10)
    claims.settle("run", "old")
    assert claims.replace("run", "old", "new") == "new"
    assert claims.replace("run", "old", "newer") == "new"


def test_only_one_holds_a_claim_at_a_time(url):
    inside, most = [0], [0]

    def work(_):
        with Claims(url, "scope", lost_after=10).hold("work"):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.02)
            inside[0] -= 1

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert most == [1]


def test_a_claim_is_kept_while_its_owner_lives_and_free_after_it_was_killed(url):
    code = (
        "import sys, time; from sgc_experiments.claims import Claims;"
        "hold = Claims(sys.argv[1], 'scope', lost_after=3).hold('work'); hold.__enter__();"
        "print('held', flush=True); time.sleep(100)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "held\n"
    claims = Claims(url, "scope", lost_after=3)
    time.sleep(4.5)  # longer than an owner may be silent
    with claims.try_to_hold("work") as ours:
        assert not ours
    owner.kill()
    owner.wait()
    started = time.monotonic()
    with claims.hold("work"):
        assert time.monotonic() - started < 10
