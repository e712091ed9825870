;;; SPDX-License-Identifier: MIT
;;; queens.scm - queens.scm N ROUNDS: in how many ways N queens stand on a board, with lists that are made and dropped.
(define (queens board-size)
  (define (attacks? row distance placed)
    (if (null? placed)
        #f
        (or (= (car placed) (+ row distance))
            (= (car placed) (- row distance))
            (= (car placed) row)
            (attacks? row (+ distance 1) (cdr placed)))))
  (define (place column placed)
    (if (= column 0)
        1
        (let try ((row 1) (ways 0))
          (if (> row board-size)
              ways
              (try (+ row 1)
                   (if (attacks? row 1 placed)
                       ways
                       (+ ways (place (- column 1) (cons row placed)))))))))
  (place board-size '()))
(define (repeat n)
  (let ((ways (queens (string->number (car command-line-arguments)))))
    (if (> n 1) (repeat (- n 1)) ways)))
(display "checksum: ")
(display (repeat (string->number (cadr command-line-arguments))))
(newline)
