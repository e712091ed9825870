#!/bin/sh
# SPDX-License-Identifier: MIT
#
# models.sh - the models in tests/models hold, and each fails when a rule that it has is taken away. Needs spin.
set -eu

command -v spin >/dev/null || { echo "no spin here"; exit 77; }
models=$(cd "${top_srcdir:-$(dirname "$0")/..}/tests/models" && pwd)
compiler=${CC:-cc}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# CC may be several words
# shellcheck disable=SC2086
# check MODEL [OPTION...]: succeeds if nothing was found and all was searched.
check() {
	name=$1
	shift
	rm -f "$work"/pan* "$work"/*.trail
	(cd "$work" && spin "$@" -a "$models/$name.pml" && $compiler -O0 -w -DSAFETY -o pan pan.c &&
		./pan -m200000) >"$work/out" 2>&1 || { cat "$work/out"; echo "$name: not run"; exit 1; }
	grep -q 'errors: 0' "$work/out" && ! grep -Eq 'max search depth|truncated|out of memory' "$work/out"
}

holds() {
	check "$@" || { cat "$work/out"; echo "FAIL: $*"; exit 1; }
	echo "holds: $* ($(sed -n 's/^ *\([0-9]*\) states, stored.*/\1/p' "$work/out") states)"
}

fails() {
	if check "$@"; then
		echo "FAIL: $* finds nothing"
		exit 1
	fi
	grep -Eq 'assertion violated|invalid end state' "$work/out" || { cat "$work/out"; echo "FAIL: $*"; exit 1; }
	echo "fails as it must: $*"
}

holds resolver
holds page
holds cold
holds cold -DRESOLVERS=2 -DSTEPS=2 -DROUNDS=1
holds fence
for rule in LOOP SHORTAGE ONCE LATE QUIT; do
	fails resolver -DBREAK_$rule
done
for rule in ORDER ATOMIC REMARK; do
	fails page -DBREAK_$rule
done
for rule in READING SETTLE AGAIN; do
	fails cold -DBREAK_$rule
done
for rule in MARK FENCE SHOOTDOWN; do
	fails fence -DBREAK_$rule
done
