;; Wants a table of a hundred million elements from the beginning.
(table $many 100000000 funcref)
(func $inspect (param i32) (result i32) (i32.const 4096))
(export "cabi_realloc" (func $allocate))
(export "portcullis:interceptor/guest@0.1.0#describe" (func $describe))
(export "portcullis:interceptor/guest@0.1.0#start" (func $well))
(export "portcullis:interceptor/guest@0.1.0#inspect" (func $inspect))
