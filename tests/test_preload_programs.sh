#!/bin/sh
# SPDX-License-Identifier: MIT
#
# python3, sqlite3 and jq under the preload library: the same output as without, several cycles each, on the rung that
# this machine has. bench/preload does the work, here on small inputs.
set -u

# shellcheck source=tests/preload.txt
. "${top_srcdir:?}/tests/preload.txt"

[ -n "${PYTHON3:-}" ] || { echo "SKIP: no python3"; exit 77; }
rung=$("$top_builddir/gcuffd" probe --json | sed -n 's/^ *"rung": "\([a-z]*\)".*/\1/p')

run_programs() {
	status=0
	"$PYTHON3" "$top_srcdir/bench/preload" --lib "$lib" --runs 1 "$@" || status=$?
	[ "$status" != 77 ] || skip "not all of it is installed"
	return "$status"
}

test_programs() { run_programs --rung "$rung" --mib 12; }

test_verify() { GCUFFD_PRELOAD=verify=1 run_programs --rung "$rung" --mib 6 python3 sqlite3; }

# A library that falls to the lowest rung has the same output and cycles enough.
test_fall() {
	[ "$rung" != stop ] || { skip "no rung but stop here"; return; }
	GCUFFD_PRELOAD=rung=stop run_programs --rung "$rung" --mib 2 python3 >"$tmp/fall" && { echo "it passes on rung stop"; return 1; }
	grep -q "its rung is stop, not $rung" "$tmp/fall" || { cat "$tmp/fall"; return 1; }
}

[ -n "$rung" ] || { echo "gcuffd probe names no rung"; exit 1; }
run_tests programs verify fall
