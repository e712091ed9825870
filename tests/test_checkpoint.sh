#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test_checkpoint.sh - examples/checkpoint writes what changed and restores what is touched; killed at any point, it goes
# on from the last checkpoint that it told of, or the one that it was about to tell of, with every word right, also when
# it had only begun to go on from one; damaged, truncated and foreign files are refused. SEED=n repeats the random
# numbers that delays before kills are made of.
#
# vm: examples/checkpoint
set -u

program=${top_builddir:-.}/examples/checkpoint
[ -x "$program" ] || { echo "skip: $program was not built"; exit 77; }
# in memory, if that can be: fsync(2) would take most of the time
dir=$(mktemp -d /dev/shm/gu-checkpoint.XXXXXX 2>/dev/null) || dir=$(mktemp -d "${TMPDIR:-/tmp}/gu-checkpoint.XXXXXX")
pid=
trap '[ -z "$pid" ] || kill -9 $pid; rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
log=$dir/log

fail() {
	echo "FAIL: $*"
	tail -n 5 "$dir/out" "$dir/err" 2>/dev/null
	exit 1
}

# run FILE ARG...: the program, its output in out and err
run() { "$program" "$@" >"$dir/out" 2>"$dir/err"; }

# start FILE ARG...: the same, in the background
start() {
	"$program" "$@" >"$dir/out" 2>"$dir/err" &
	pid=$!
}

wait_for_checkpoint() {
	until grep -q '^checkpoint' "$dir/out"; do
		kill -0 "$pid" || fail "it ended by itself"
		sleep 0.01
	done
}

kill_it() {
	kill -9 "$pid" || fail "it ended by itself"
	wait "$pid" 2>/dev/null
	pid=
}

# refused WORDS FILE ARG...: it ends with status 1 and these words
refused() {
	words=$1
	shift
	run "$@"
	status=$?
	[ $status = 1 ] || fail "$* ends with status $status"
	grep -q "$words" "$dir/err" || fail "$*: no word of '$words'"
}

# verified FILE WHEN
verified() {
	run "$1" verify || fail "$2: it does not verify"
	grep -qx verified "$dir/out" || fail "$2: it was not verified"
}

# most WORD: the largest number before WORD in the lines of checkpoints
most() { sed -n "s/^checkpoint .* \([0-9]*\) $1.*/\1/p" "$dir/out" | sort -n | tail -n 1; }

# damage FILE OFFSET
damage() { head -c 8 /dev/urandom | dd of="$1" bs=1 seek="$2" conv=notrunc 2>/dev/null; }

size() { wc -c <"$1"; }

few_pages() {
	run "$dir/none" run 64 0 1 || fail "no checkpoint"
	verified "$dir/none" "without a checkpoint"
	rm "$dir/none"
	run "$log" run 4096 1 2000 || fail "the first checkpoint"
	[ "$(most pages)" -gt 2000 ] || fail "2000 transfers write $(most pages) pages"
	run "$log" run 4096 5 3 || fail "small checkpoints"
	[ "$(most pages)" -le 7 ] || fail "3 transfers write $(most pages) pages"
	[ "$(most bytes)" -le $((8 * 4096)) ] || fail "3 transfers take $(most bytes) bytes"
	run "$log" run 4096 1 3 || fail "one more"
	filled=$(sed -n 's/ pages filled//p' "$dir/out")
	[ "$filled" -le 28 ] || fail "7 pages in windows of 4 are touched, and $filled are filled"
	verified "$log" "after small checkpoints"
}

bad_arguments() {
	run && fail "no argument is taken"
	grep -q '^usage: ' "$dir/err" || fail "no usage"
	for bad in 'run 64 1' 'run 0 1 1' 'run 64 1 1x' 'run 64 -1 1' 'check' 'run 999999999 1 1' 'verify 1'; do
		# shellcheck disable=SC2086 # several words
		run "$log" $bad
		[ $? = 2 ] || fail "$bad is taken"
	done
	refused 'No such file' "$dir/none" verify
	refused 'another number of pages' "$log" run 64 1 1
	refused 'Is a directory' "$dir" run 64 1 1
	refused 'No such file' "$dir/no/where" run 64 1 1
}

foreign_files() {
	head -c 100000 /dev/urandom >"$dir/foreign"
	cp "$dir/foreign" "$dir/before"
	refused 'not a checkpoint file' "$dir/foreign" run 64 1 1
	cmp -s "$dir/foreign" "$dir/before" || fail "a foreign file was written to"
	: >"$dir/empty"
	refused 'not a checkpoint file' "$dir/empty" run 64 1 1
}

damaged_files() {
	run "$log" run 4096 2 3 || fail "two checkpoints"
	record=$(most bytes) last=$(sed -n 's/^checkpoint \([0-9]*\):.*/\1/p' "$dir/out" | tail -n 1)
	end=$(size "$log")
	cp "$log" "$dir/good"
	head -c 10000 /dev/urandom >>"$log"
	verified "$log" "with an end that was not finished"
	cmp -s "$log" "$dir/good" || fail "what was not finished is not cut off"
	damage "$log" $((end - 1000))
	refused 'page [0-9]* is damaged' "$log" verify
	cp "$dir/good" "$log"
	damage "$log" $((end - record + 8))
	refused 'file is damaged' "$log" verify
	cp "$dir/good" "$log"
	damage "$log" $((end - record + 24)) # the first entry
	refused 'file is damaged' "$log" verify
	head -c $((end - 1)) "$dir/good" >"$log"
	refused 'truncated' "$log" run 4096 1 1
	[ "$(size "$log")" = $((end - 1)) ] || fail "a truncated file was written to"
	cp "$dir/good" "$log"
	damage "$log" $((last % 2 * 4096 + 16))
	verified "$log" "the checkpoint before the last"
	grep -q 'slot is damaged' "$dir/err" || fail "no word of the slot"
	grep -q "^restored $((last - 1)):" "$dir/out" || fail "not the checkpoint before $last"
	damage "$log" $(((last - 1) % 2 * 4096 + 16))
	refused 'not a checkpoint file' "$log" verify
	cp "$dir/good" "$log"
}

# A limit on files does as well as a full disk.
full_disk() {
	(
		trap '' XFSZ
		ulimit -f $(($(size "$log") / 512 + 100)) && refused 'File too large' "$log" run 4096 1 8000
	) || exit 1
	verified "$log" "after a checkpoint that did not fit"
}

two_at_once() {
	start "$log" run 4096 1000000000 1
	wait_for_checkpoint
	"$program" "$log" verify >"$dir/two" 2>&1 && fail "two processes have the file"
	grep -q 'another process has it' "$dir/two" || fail "no word of the other process"
	kill_it
	verified "$log" "after the first of two"
}

# next LIMIT: a random number below it
next() {
	seed=$(((seed * 1103515245 + 12345) % 2147483648))
	random=$((seed / 4096 % $1))
}

# killed FILE LAST: the checkpoint that is there is LAST or what the program told of, or one later; sets now
killed() {
	told=$(sed -n 's/^checkpoint \([0-9]*: [0-9]* transfers\), .* us$/\1/p' "$dir/out" | tail -n 1)
	[ -e "$1" ] || [ -n "$told" ] || return 1
	verified "$1" "kill $kills, after ${told:-nothing}"
	at=$(sed -n 's/^restored \([0-9]*: [0-9]* transfers\), .*/\1/p' "$dir/out")
	now=${at%%:*} last=${told:-$2:}
	last=${last%%:*}
	[ "$now" = "$last" ] || [ "$now" = $((last + 1)) ] || fail "kill $kills: checkpoint $now, after it told of $last"
	[ -z "$told" ] || [ "$now" != "$last" ] || [ "$at" = "$told" ] || fail "kill $kills: $at, after it told of $told"
}

kills() {
	kills=0 here=0
	until=$(($(date +%s) + ${CHECK_SECONDS:-5}))
	while [ "$(date +%s)" -lt $until ]; do
		next 40
		start "$dir/kills" run 64 1000000000 $((random + 1))
		wait_for_checkpoint
		next 30
		sleep "0.0$random"
		kill_it
		killed "$dir/kills" "$here"
		here=$now
		start "$dir/new$kills" run 64 1000000000 1
		next 20
		sleep "0.00$random"
		kill_it
		killed "$dir/new$kills" 0 # it may not be there yet
		kills=$((kills + 1))
	done
	echo "$((2 * kills)) kills, $here checkpoints"
}

# begin_again: the program goes on from a file that ends in what was not finished
begin_again() {
	head -c 9000 /dev/urandom >>"$dir/again"
	: >"$dir/out"
	start "$dir/again" run 256 1000000000 50
}

# spin TURNS: waits; another process, as sleep, would take too long
spin() {
	turns=0
	while [ $turns -lt "$1" ]; do
		[ -s "$dir/out" ]
		turns=$((turns + 1))
	done
}

# Killed while it opens a file, cuts off its end, makes memory of it and begins to fill that: as often before there is
# memory as after it.
kills_at_the_start() {
	kills=0 early=0 most=100
	run "$dir/again" run 256 3 1000 || fail "three checkpoints"
	now=$(sed -n 's/^checkpoint \([0-9]*\):.*/\1/p' "$dir/out" | tail -n 1)
	until=$(($(date +%s) + ${CHECK_SECONDS:-5}))
	while [ $kills -lt $((32 / ${CHECK_SLOW:-1})) ] || [ "$(date +%s)" -lt $until ]; do
		here=$now
		begin_again
		next $most
		spin "$random"
		kill_it
		if [ -s "$dir/out" ]; then
			most=$((most - most / 4))
		else
			early=$((early + 1)) most=$((most + most / 4 + 1))
		fi
		kills=$((kills + 1))
		killed "$dir/again" "$here"
	done
	echo "$kills kills, $early of them before there was memory"
	[ $early -gt 0 ] || fail "no kill came early"
	[ $early -lt $kills ] || [ $kills -lt 32 ] || fail "all kills came early"
}

if ! run "$dir/try" run 64 1 1; then
	case ,${CHECK_NEED:-}, in *,poison,*) fail "a first run" ;; esac
	grep -q 'not supported\|not permitted' "$dir/err" && { sed 's/^/skip: /' "$dir/err"; exit 77; }
	fail "a first run"
fi
few_pages
bad_arguments
foreign_files
damaged_files
full_disk
two_at_once
seed=${SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
echo "SEED=$seed"
kills
kills_at_the_start
