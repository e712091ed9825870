;;; SPDX-License-Identifier: MIT
;;; trees.scm - trees.scm DEPTH ROUNDS: keeps a tree of pairs of DEPTH, and a vector, while trees of all smaller depths are built and dropped.
(define (make-tree depth) (if (= depth 0) (cons '() '()) (cons (make-tree (- depth 1)) (make-tree (- depth 1)))))
(define (count-tree tree) (if (null? tree) 0 (+ 1 (count-tree (car tree)) (count-tree (cdr tree)))))
(let* ((depth (string->number (car command-line-arguments)))
       (rounds (string->number (cadr command-line-arguments)))
       (kept (make-tree depth))
       (numbers (make-vector 100000 1.5)))
  (let round ((r 0) (sum 0))
    (if (< r rounds)
        (round (+ r 1)
               (let each ((d 4) (sum sum))
                 (if (> d depth)
                     sum
                     (each (+ d 2)
                           (let times ((n (expt 2 (- depth d))) (sum sum))
                             (if (= n 0) sum (times (- n 1) (+ sum (count-tree (make-tree d))))))))))
        (begin
          (display "checksum: ")
          (display (list sum (count-tree kept) (vector-ref numbers (- 100000 1))))
          (newline)))))
