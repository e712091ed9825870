#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test_lisp.sh - examples/lisp: its own tests, also with the verifier and a collection at every turn; what its command line does; images; errors that end a program.
#
# vm: examples/lisp/lisp examples/lisp/tests/check.scm examples/lisp/tests/language.scm examples/lisp/tests/control.scm examples/lisp/tests/data.scm examples/lisp/programs/queens.scm examples/lisp/programs/interpreter.scm examples/lisp/programs/json.scm examples/lisp/programs/wordcount.scm examples/lisp/programs/trees.scm
set -u

lisp=${top_builddir:-.}/examples/lisp/lisp
[ -x "$lisp" ] || { echo "skip: $lisp was not built"; exit 77; }
tests=${top_srcdir:-.}/examples/lisp/tests
dir=$(mktemp -d "${TMPDIR:-/tmp}/gu-lisp.XXXXXX")
trap 'rm -rf "$dir"' EXIT
tests=$(cd "$tests" && pwd)
programs=$tests/../programs
lisp=$(cd "$(dirname "$lisp")" && pwd)/lisp
cd "$dir" || exit 1

fail() {
	echo "FAIL: $*"
	exit 1
}

# suite NAME OPTION...
suite() {
	name=$1
	shift
	"$lisp" "$@" "$tests/$name.scm" "$tests" >out 2>&1 || { cat out; fail "$name $*"; }
	echo "$name $*: $(tail -n 1 out)"
}

# gives EXPECTED OPTION...: what it prints
gives() {
	expected=$1
	shift
	out=$("$lisp" "$@" 2>&1)
	[ "$out" = "$expected" ] || fail "$* gives: $out"
}

# computes VALUE PROGRAM ARGUMENT...: as another Scheme does; with little room, too
computes() {
	value=$1 program=$2
	shift 2
	for heap in 0 16777216; do
		out=$("$lisp" --heap $heap "$programs/$program.scm" "$@" 2>&1)
		[ "$out" = "checksum: $value" ] || fail "$program $* in $heap bytes gives: $out"
	done
}

for name in language control data; do
	suite $name
done
computes 4 queens 6 1
computes 76189 interpreter 10
computes 857166 json json.tmp 300 5 1
computes '(1260 2000 18)' wordcount 2 1000 3
computes '(1515 511 1.5)' trees 8 1
[ -n "${CHECK_SLOW:-}" ] || for name in language control data; do # all of memory is looked at each time
	suite $name --options verify=1,start_size=64K,growth_percent=10
done
gives "3" -e '(+ 1 2)'
"$lisp" -e '(define (f x) (+ 1 (car x)))' -e '(f 5)' >out 2>&1 && fail "an error ends with status 0"
grep -q '^error: car: not a pair: 5$' out || fail "no word of the error"
grep -q '^  in f$' out || fail "no word of where it was"
"$lisp" no-such-file >out 2>&1 && fail "no such file, and status 0"
"$lisp" --bad >out 2>&1
[ $? = 2 ] || fail "a bad option is taken"
echo '(+ 1 1) (car 1)' | "$lisp" >out 2>&1 && fail "an error from the input ends with status 0"
grep -qx 2 out || fail "the input is not read"

"$lisp" -e '(define table (make-weak-eq-hash-table))' -e '(define key (list 1))' -e '(hash-table-set! table key "kept")' -e '(define (twice x) (* 2 (car (list x))))' \
	-e '(define odd (let ((n 0)) (lambda () (set! n (+ n 2)) n)))' -e '(odd)' -e '(define k2 #f)' -e '(define (again) (+ 1 (call/cc (lambda (k) (set! k2 k) 1))))' -e '(again)' \
	-e '(define old-car car)' -e '(set! car (lambda (x) 99))' -e '(save-image "image")' >out 2>&1 || { cat out; fail "no image is saved"; }
gives '("kept" 198 4)' --image image -e '(list (hash-table-ref/default table key #f) (twice -5) (odd))'
n=0
while [ $n -lt $((20 / ${CHECK_SLOW:-1})) ]; do # wherever the program and its libraries lie
	gives '7' --image image -e '(+ 3 4)'
	n=$((n + 1))
done
gives '42' --image image -e '(set! car old-car)' -e '(twice 21)'
gives '6' --image image -e '(begin (k2 5))'
"$lisp" -e '(save-image "start" (lambda () (display "hello from an image") (newline)))' >out 2>&1 || { cat out; fail "no image with a beginning"; }
gives 'hello from an image' --image start
head -c 20000 image >half
"$lisp" --image half -e 1 >out 2>&1 && fail "half an image is taken"
exit 0
