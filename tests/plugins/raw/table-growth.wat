;; Grows a table for ever.
(table $many 1 funcref)
(func $inspect (param i32) (result i32)
  (loop $for_ever
    (drop (table.grow $many (ref.null func) (i32.const 1000)))
    (br $for_ever))
  (unreachable))
(export "cabi_realloc" (func $allocate))
(export "portcullis:interceptor/guest@0.1.0#describe" (func $describe))
(export "portcullis:interceptor/guest@0.1.0#start" (func $well))
(export "portcullis:interceptor/guest@0.1.0#inspect" (func $inspect))
