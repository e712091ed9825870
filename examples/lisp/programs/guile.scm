;;; SPDX-License-Identifier: MIT
;;; guile.scm - what the programs here need under another Scheme: guile -l guile.scm PROGRAM ARGUMENT...
(use-modules (srfi srfi-1) (srfi srfi-9) (srfi srfi-69) (ice-9 threads) (ice-9 textual-ports))
(define command-line-arguments (cdr (command-line)))
(define read-all get-string-all)
(define thread-start call-with-new-thread)
(define thread-join! join-thread)
