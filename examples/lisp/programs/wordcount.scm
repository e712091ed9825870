;;; SPDX-License-Identifier: MIT
;;; wordcount.scm - wordcount.scm THREADS WORDS SEED: makes a text for each thread, counts the words of it in each, and puts the counts together.

(define (make-text n seed)
  (let ((text (make-string (* n 6) #\space)))
    (let loop ((i 0) (seed seed))
      (if (< i n)
          (let ((seed (remainder (+ (* seed 1103515245) 12345) 2147483648)))
            (let letters ((k 0) (x (quotient seed 65536)))
              (if (< k (+ 2 (remainder seed 4)))
                  (begin
                    (string-set! text (+ (* i 6) k) (integer->char (+ 97 (remainder x 7))))
                    (letters (+ k 1) (quotient x 7)))))
            (loop (+ i 1) seed))
          text))))

(define (count-words text)
  (let ((counts (make-hash-table)) (n (string-length text)))
    (let loop ((i 0) (start #f))
      (if (= i n)
          (begin (if start (add counts (substring text start i) 1)) counts)
          (if (char=? (string-ref text i) #\space)
              (begin (if start (add counts (substring text start i) 1)) (loop (+ i 1) #f))
              (loop (+ i 1) (or start i)))))))

(define (add counts word n) (hash-table-set! counts word (+ n (hash-table-ref/default counts word 0))))

(define (merge-counts tables)
  (let ((all (make-hash-table)))
    (for-each (lambda (t) (for-each (lambda (entry) (add all (car entry) (cdr entry))) (hash-table->alist t))) tables)
    all))

(define (start-all n words seed)
  (if (= n 0)
      '()
      (cons (thread-start (lambda () (count-words (make-text words (+ seed n))))) (start-all (- n 1) words seed))))

(let* ((arguments (map string->number command-line-arguments))
       (all (merge-counts (map thread-join! (start-all (car arguments) (cadr arguments) (list-ref arguments 2)))))
       (entries (hash-table->alist all)))
  (display "checksum: ")
  (display (list (length entries) (apply + (map cdr entries)) (apply max (map cdr entries))))
  (newline))
