;; Asks for what a later contract may have.
(component
  (import "portcullis:interceptor/shell@0.1.0" (instance)))
