;; Gives the host one and the same address for every part of the message.
(func $same (param i32 i32 i32 i32) (result i32) (i32.const 16384))
(func $inspect (param i32) (result i32) (i32.const 4096))
(export "cabi_realloc" (func $same))
(export "portcullis:interceptor/guest@0.1.0#describe" (func $describe))
(export "portcullis:interceptor/guest@0.1.0#start" (func $well))
(export "portcullis:interceptor/guest@0.1.0#inspect" (func $inspect))
