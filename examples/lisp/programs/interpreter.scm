;;; SPDX-License-Identifier: MIT
;;; interpreter.scm - interpreter.scm N: a Scheme in Scheme, which runs programs: Fibonacci numbers up to N, primes, sorting, closures, assoc lists.
;;; It evaluates forms as they are; environments are lists of frames, frames are pairs of lists of names and of values.

(define-record-type <closure> (make-closure parameters body environment) closure?
  (parameters closure-parameters) (body closure-body) (environment closure-environment))

(define (find-binding name environment)
  (let next-frame ((frames environment))
    (if (null? frames)
        (error "not bound" name)
        (let scan ((names (caar frames)) (values (cdar frames)))
          (cond ((null? names) (next-frame (cdr frames)))
                ((eq? (car names) name) values)
                (else (scan (cdr names) (cdr values))))))))

(define (define-variable! name value environment)
  (let ((frame (car environment)))
    (set-car! frame (cons name (car frame)))
    (set-cdr! frame (cons value (cdr frame)))))

(define (evaluate x environment)
  (cond ((symbol? x) (car (find-binding x environment)))
        ((not (pair? x)) x)
        (else
         (case (car x)
           ((quote) (cadr x))
           ((if)
            (if (evaluate (cadr x) environment)
                (evaluate (caddr x) environment)
                (if (pair? (cdr (cddr x))) (evaluate (cadr (cddr x)) environment) #f)))
           ((lambda) (make-closure (cadr x) (cddr x) environment))
           ((define)
            (if (pair? (cadr x))
                (define-variable! (caadr x) (make-closure (cdadr x) (cddr x) environment) environment)
                (define-variable! (cadr x) (evaluate (caddr x) environment) environment)))
           ((set!) (set-car! (find-binding (cadr x) environment) (evaluate (caddr x) environment)))
           ((begin) (evaluate-body (cdr x) environment))
           ((let)
            (evaluate-body (cddr x)
                           (cons (cons (map car (cadr x))
                                       (map (lambda (b) (evaluate (cadr b) environment)) (cadr x)))
                                 environment)))
           ((cond) (evaluate-cond (cdr x) environment))
           (else
            (apply-procedure (evaluate (car x) environment) (evaluate-list (cdr x) environment)))))))

(define (evaluate-cond clauses environment)
  (cond ((null? clauses) #f)
        ((or (eq? (caar clauses) 'else) (evaluate (caar clauses) environment))
         (evaluate-body (cdar clauses) environment))
        (else (evaluate-cond (cdr clauses) environment))))

(define (evaluate-body forms environment)
  (if (null? (cdr forms))
      (evaluate (car forms) environment)
      (begin (evaluate (car forms) environment) (evaluate-body (cdr forms) environment))))

(define (evaluate-list forms environment)
  (if (null? forms) '() (cons (evaluate (car forms) environment) (evaluate-list (cdr forms) environment))))

(define (apply-procedure f arguments)
  (if (closure? f)
      (evaluate-body (closure-body f) (cons (cons (closure-parameters f) arguments) (closure-environment f)))
      (apply f arguments)))

(define (global-environment)
  (list (cons (list '+ '- '* '< '= 'car 'cdr 'cons 'null? 'pair? 'remainder 'not 'eq? 'list)
              (list + - * < = car cdr cons null? pair? remainder not eq? list))))

(define program
  '((define (fib n) (if (< n 2) n (+ (fib (- n 1)) (fib (- n 2)))))
    (define (range a b) (if (< a b) (cons a (range (+ a 1) b)) '()))
    (define (filter keep l)
      (cond ((null? l) '()) ((keep (car l)) (cons (car l) (filter keep (cdr l)))) (else (filter keep (cdr l)))))
    (define (sieve l)
      (if (null? l) '()
          (let ((p (car l))) (cons p (sieve (filter (lambda (n) (not (= 0 (remainder n p)))) (cdr l)))))))
    (define (sum l) (let ((total 0)) (begin (define (go l) (if (null? l) total (begin (set! total (+ total (car l))) (go (cdr l))))) (go l))))
    (define (insert x l) (if (null? l) (list x) (if (< x (car l)) (cons x l) (cons (car l) (insert x (cdr l))))))
    (define (sort l) (if (null? l) '() (insert (car l) (sort (cdr l)))))
    (define (scramble n x) (if (= n 0) '() (cons x (scramble (- n 1) (remainder (+ (* x 1103) 12345) 65536)))))))

(define (run n)
  (let ((environment (global-environment)))
    (for-each (lambda (form) (evaluate form environment)) program)
    (list (evaluate (list 'fib n) environment)
          (evaluate '(sum (sieve (range 2 1000))) environment)
          (evaluate '(car (sort (scramble 300 7))) environment))))

(display "checksum: ")
(display (apply + (run (string->number (car command-line-arguments)))))
(newline)
