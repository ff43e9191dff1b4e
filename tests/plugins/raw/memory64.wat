;; Has a second memory that 64 bits address.
(memory $wide i64 1)
(func $inspect (param i32) (result i32)
  (drop (memory.grow $wide (i64.const 0x100000000)))
  (i32.const 4096))
(export "cabi_realloc" (func $allocate))
(export "portcullis:interceptor/guest@0.1.0#describe" (func $describe))
(export "portcullis:interceptor/guest@0.1.0#start" (func $well))
(export "portcullis:interceptor/guest@0.1.0#inspect" (func $inspect))
