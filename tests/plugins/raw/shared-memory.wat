;; Has memory for threads, and waits in it for one that never comes.
(memory $shared 1 1 shared)
(func $inspect (param i32) (result i32)
  (drop (memory.atomic.wait32 $shared (i32.const 0) (i32.const 0) (i64.const -1)))
  (i32.const 4096))
(export "cabi_realloc" (func $allocate))
(export "portcullis:interceptor/guest@0.1.0#describe" (func $describe))
(export "portcullis:interceptor/guest@0.1.0#start" (func $well))
(export "portcullis:interceptor/guest@0.1.0#inspect" (func $inspect))
