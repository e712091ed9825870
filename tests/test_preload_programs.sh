#!/bin/sh
# SPDX-License-Identifier: MIT
#
# python3, sqlite3 and jq under the preload library: the same output as without, several cycles each.
# bench/preload does the work, here on small inputs.
set -u

# shellcheck source=tests/preload.txt
. "${top_srcdir:?}/tests/preload.txt"

[ -n "${PYTHON3:-}" ] || { echo "SKIP: no python3"; exit 77; }

test_programs() { "$PYTHON3" "$top_srcdir/bench/preload" --lib "$lib" --mib 12 --runs 1; }

test_verify() {
	GCUFFD_PRELOAD=verify=1 "$PYTHON3" "$top_srcdir/bench/preload" --lib "$lib" --mib 6 --runs 1 python3 sqlite3
}

run_tests programs verify
