#!/bin/sh
# SPDX-License-Identifier: MIT
#
# The preload library under programs small and large: what malloc promises, lists kept in places of all kinds by
# threads that come, go, fork and execute others, what leaks is collected, and what is small is left alone.
set -u

# shellcheck source=tests/preload.txt
. "${top_srcdir:?}/tests/preload.txt"

test_family() { preload "$prog"_family 63 && [ "$(cat "$tmp/out")" = "0 wrong" ]; }

test_leak() {
	preload "$prog"_leak || return 1
	[ "$(cat "$tmp/out")" -lt 204800 ] || { echo "10 GB leaked took $(cat "$tmp/out") KiB"; return 1; }
	at_least cycles 10
}

test_leak_large() {
	preload "$prog"_leak 4096 300000 || return 1
	[ "$(cat "$tmp/out")" -lt 204800 ] || { echo "4 GB leaked took $(cat "$tmp/out") KiB"; return 1; }
}

# threads CYCLES OPTIONS [FLAG...]: for 2 seconds, or for 20 where the machine does not get to so many cycles. A stop may take its time.
threads() {
	cycles=$1
	export GCUFFD_PRELOAD="stop_timeout_ms=20000$2"
	shift 2
	preload "$prog"_threads 2 "$@" || return 1
	[ "$(value cycles)" -ge "$cycles" ] || preload "$prog"_threads 20 "$@" || return 1
	unset GCUFFD_PRELOAD
	at_least cycles "$cycles"
}

test_threads() { threads 3 "" && exactly "put off" 0; }
test_threads_fork() { threads 3 "" fork; }
test_threads_signals() { threads 3 "" signals && exactly "put off" 0; }
test_threads_raw() { threads 3 "" raw; }
test_threads_stop() { threads 3 ,rung=stop fork raw; }
test_threads_verify() { threads 1 ,verify=1,start_size=4M raw && exactly "verify failures" 0; }

# A stop signal that is under way when the program is replaced must not kill the new one.
test_exec() {
	for i in 1 2 3 4 5 6; do
		preload "$prog"_threads 0.7 exec || { echo "round $i"; return 1; }
	done
}

test_true() {
	plain=$("$prog"_leak --run true) || return 1
	loaded=$(LD_PRELOAD=$lib "$prog"_leak --run true) || return 1
	[ "$loaded" -le $((plain + 2048)) ] || { echo "true: $plain KiB, under the library $loaded KiB"; return 1; }
}

test_forks() {
	cat >"$tmp/forks" <<'EOF'
i=0
while [ $i -lt 1000 ]; do
	(:)
	[ $((i % 10)) != 0 ] || /bin/true
	i=$((i + 1))
done
echo $i
EOF
	preload sh "$tmp/forks" && [ "$(cat "$tmp/out")" = 1000 ]
}

# A user namespace is for processes of one thread only.
test_unshare() {
	unshare -Ur true 2>/dev/null || { skip "not allowed here"; return; }
	preload unshare -Ur true
}

test_options() {
	GCUFFD_PRELOAD=no_such=1 preload true || return 1
	[ "$(grep -c . "$tmp/err")" = 1 ] || { cat "$tmp/err"; return 1; }
	GCUFFD_PRELOAD=cold=1 preload "$prog"_family 63 || return 1
	grep -q "cold=1 is for programs" "$tmp/err" || return 1
	GCUFFD_PRELOAD=hard_limit=100M preload "$prog"_leak 1000 && [ "$(cat "$tmp/out")" -lt 122880 ]
}

run_tests family leak leak_large threads threads_fork threads_signals threads_raw threads_stop threads_verify exec true \
	forks unshare options
