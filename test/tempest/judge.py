#!/usr/bin/python3
"""Judges one run of tempest: judge.py TESTS RESULTS [FAILING [--update]]

TESTS    the tests that were asked for, a line each, as `tempest run --list-tests` prints them
RESULTS  what came of them, as subunit2csv prints it
FAILING  the tests that are known to fail. Every test that fails must be in it, and every test in it that was asked for
         must fail, so that the list can only shrink; --update takes out what no longer fails. Without it no test may fail.

It prints a line per service and a total, and ends with 1 when the run does not agree with FAILING. A test that left no
result is a failure: it may have been lost with its worker."""

import collections
import csv
import re
import sys


def bare(test):
    """A test's name without its tags."""
    return test.split("[")[0]


def service(test):
    words = test.split(".")
    return words[2] if words[1] == "api" else words[1]


def results(asked, rows):
    """What came of every test that was asked for: passed, skipped or failed. What befell a whole class befell those of
    its tests that have no result of their own."""
    own, classes, extra = {}, {}, {}
    for row in rows:
        status = {"success": "passed", "skip": "skipped", "xfail": "passed"}.get(row["status"], "failed")
        fixture = re.fullmatch(r"(setUpClass|tearDownClass) \((.*)\)", row["test"])
        if not fixture:
            own[bare(row["test"])] = status
        elif fixture[1] == "setUpClass":
            classes[fixture[2]] = status
        elif status == "failed":
            extra[fixture[2] + ".tearDownClass"] = status
    found = {test: own.get(test) or classes.get(test.rpartition(".")[0], "failed") for test in asked}
    return found | extra


def main(tests, results_file, failing=None, update=None):
    with open(tests) as f:
        asked = {bare(line.strip()) for line in f if line.startswith("tempest.")}
    with open(results_file, newline="") as f:
        found = results(asked, csv.DictReader(f))
    if not asked:
        sys.exit("no tests were asked for")

    known = []
    if failing:
        with open(failing) as f:
            known = [line.strip() for line in f if line.strip() and not line.startswith("#")]

    count = collections.Counter((service(test), status) for test, status in found.items())
    total = collections.Counter(found.values())
    for name in sorted({service(test) for test in found}):
        print("%-9s %4d passed, %d failed, %d skipped" % (name, *(count[name, s] for s in ("passed", "failed", "skipped"))))
    print("%-9s %4d passed, %d failed, %d skipped" % ("total", total["passed"], total["failed"], total["skipped"]))

    failed = {test for test, status in found.items() if status == "failed"}
    new = sorted(failed - set(known))
    gone = sorted(test for test in known if test not in failed and test in asked)
    if new:
        print("\nfailed:", *new, sep="\n  ")
    if gone and update:
        with open(failing) as f:
            lines = [line for line in f if line.strip() not in gone]
        with open(failing, "w") as f:
            f.writelines(lines)
        print("\ntaken out of %s, since they no longer fail:" % failing, *gone, sep="\n  ")
    elif gone:
        print("\nin %s, but not failing; take them out (--update does):" % failing, *gone, sep="\n  ")
    sys.exit(bool(new or (gone and not update)))


main(*sys.argv[1:])
