#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test_folder.sh - what a test leaves behind is gone when it has ended, whether it was killed itself or with tools/test-driver.
set -eu
top=${top_srcdir:-.}
dir=$(mktemp -d "${TMPDIR:-/var/tmp}/gu-folder.XXXXXX")
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$dir/tmp"

# await WHAT COMMAND...: within a minute
await() {
	what=$1 n=0
	shift
	until "$@"; do
		[ $((n += 1)) -le 600 ] || { echo "FAIL: $what"; ls -lR "$dir"; exit 1; }
		sleep 0.1
	done
}
is_empty() { [ -z "$(ls -A "$dir/tmp")" ]; }
# shellcheck disable=SC2086 # a pattern
has_file() { ls -d "$dir"/tmp/$1 >/dev/null 2>&1; }

# drive NAME COMMAND...: by tools/test-driver
drive() {
	name=$1
	shift
	TMPDIR=$dir/tmp sh "$top/tools/test-driver" --test-name "$name" --log-file "$dir/$name.log" --trs-file "$dir/$name.trs" -- "$@"
}

# shellcheck disable=SC2016 # for the inner shell
drive left sh -c 'mkdir "$TMPDIR/a"; : >"$TMPDIR/a/b"; chmod 700 "$TMPDIR/a"; exit 3' >/dev/null
grep -q 'FAIL left (exit status: 3)' "$dir/left.log"
is_empty || { echo "FAIL: something is left of a test that failed"; exit 1; }

# shellcheck disable=SC2016
drive ended sh -c 'kill -9 $$' >/dev/null 2>&1
is_empty || { echo "FAIL: something is left of a test that was killed"; exit 1; }

# As from a terminal, or from timeout: a signal to all of them.
command -v setsid >/dev/null || { echo "no setsid here"; exit 77; }
# shellcheck disable=SC2016
TMPDIR=$dir/tmp setsid sh "$top/tools/test-driver" --test-name all --log-file "$dir/all.log" --trs-file "$dir/all.trs" -- \
	sh -c ': >"$TMPDIR/began"; sleep 1000' >/dev/null 2>&1 &
pid=$!
await "the test does not begin" has_file "gu-test.*/began"
kill -TERM -$pid
wait $pid || :
is_empty || { echo "FAIL: something is left after a signal"; exit 1; }
[ ! -e "$dir/all.trs" ] || { echo "FAIL: a test that was broken off has a result"; exit 1; }

# A program alone, which keeps its own folder, and has no time to end.
program=${top_builddir:-.}/tests/test_image
if [ -x "$program" ]; then
	TMPDIR=$dir/tmp CK_FORK=no CK_RUN_CASE=whole "$program" >/dev/null 2>&1 &
	pid=$!
	await "the program makes no folder" has_file "gu.*"
	kill -KILL $pid
	wait $pid || :
	await "a program's folder is left" is_empty
fi
