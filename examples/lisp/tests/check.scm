;;; SPDX-License-Identifier: MIT
;;; check.scm - (check expression value): says so, and counts, where they are not equal?; (checks-done) ends the program.
(define checks-failed 0)
(define checks-made 0)
(define (check-equal form got expected)
  (set! checks-made (+ checks-made 1))
  (if (not (equal? got expected))
      (begin
        (set! checks-failed (+ checks-failed 1))
        (display "FAIL: ") (write form) (display " gives ") (write got) (display ", not ") (write expected) (newline))))
(define-syntax check
  (syntax-rules () ((_ form expected) (check-equal 'form form expected))))
;; The message of the condition that the form raises.
(define-syntax check-error
  (syntax-rules ()
    ((_ form text)
     (check-equal 'form (guard (e (#t (if (error-object? e) (condition/report-string e) e))) form) text))))
(define (checks-done)
  (display checks-made) (display " checks, ") (display checks-failed) (display " failed") (newline)
  (exit (if (= checks-failed 0) 0 1)))
