#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test_count.sh - tools/count sums up results: what was skipped or left out is no pass.
set -eu
count=${top_srcdir:-$(cd "$(dirname "$0")/.." && pwd)}/tools/count
dir=$(mktemp -d "${TMPDIR:-/tmp}/gu-count.XXXXXX")
trap 'rm -rf "$dir"' EXIT

# result NAME RESULT: one test, its log from stdin
result() {
	mkdir -p "$dir/tests"
	cat >"$dir/tests/$1.log"
	echo ":test-result: $2" >"$dir/tests/$1.trs"
}

# expect STATUS LINE: of all results so far, which are then dropped
expect() {
	status=0
	line=$("$count" "$dir") || status=$?
	[ "$status $line" = "$1 $2" ] || { echo "FAIL: status $status, '$line' instead of $1, '$2'"; exit 1; }
	rm -rf "$dir/tests"
}

result a PASS <<'END'
SKIP one: no swap
NONE two: only where thp
NONE two: only where thp
100%: Checks: 10, Failures: 0, Errors: 0
END
result b PASS </dev/null
result c.sh SKIP <<'END'
SKIP: not here
END
expect 0 "8 passed, 0 failed, 2 skipped"

result a SKIP <<'END'
NONE two: only where thp
SKIP one: no swap
100%: Checks: 2, Failures: 0, Errors: 0
END
expect 0 "0 passed, 0 failed, 1 skipped"

result a FAIL <<'END'
NONE two: only where thp
66%: Checks: 4, Failures: 1, Errors: 1
END
expect 1 "1 passed, 2 failed, 0 skipped"

result a FAIL <<'END'
100%: Checks: 4, Failures: 0, Errors: 0
END
expect 1 "4 passed, 1 failed, 0 skipped"

mkdir "$dir/tests"
expect 1 "0 passed, 0 failed, 0 skipped"
echo "PASS"
