;; Refuses with a reason that is not UTF-8.
(data (i32.const 8192) "\00\00\00\00" "\01\00\00\00" "\00\05\00\00\03\00\00\00" "\00\21\00\00\04\00\00\00")
(data (i32.const 8448) "\ff\fe\c0\80")
(func $inspect (param i32) (result i32) (i32.const 8192))
(export "cabi_realloc" (func $allocate))
(export "portcullis:interceptor/guest@0.1.0#describe" (func $describe))
(export "portcullis:interceptor/guest@0.1.0#start" (func $well))
(export "portcullis:interceptor/guest@0.1.0#inspect" (func $inspect))
