;; Gives the host an address outside its memory for the message.
(func $lie (param i32 i32 i32 i32) (result i32) (i32.const -65536))
(func $inspect (param i32) (result i32) (i32.const 4096))
(export "cabi_realloc" (func $lie))
(export "portcullis:interceptor/guest@0.1.0#describe" (func $describe))
(export "portcullis:interceptor/guest@0.1.0#start" (func $well))
(export "portcullis:interceptor/guest@0.1.0#inspect" (func $inspect))
