//! Limits of processes and memory.

use crate::harness::{python, run};

#[tokio::test]
async fn fork_bomb_is_limited() {
    let text = r#"
import os, time
n = 1
while True:
    try:
        if os.fork() == 0: time.sleep(600)
        n += 1
    except OSError as error:
        print(n, os.strerror(error.errno)); break"#;
    let mut spec = python(text);
    spec.resources.pids = 20;
    let run = run(&spec).await;
    assert_eq!(run.stdout.trim(), "20 Resource temporarily unavailable", "{run:?}");
}

#[tokio::test]
async fn memory_limit_applies_to_one_and_all_processes() {
    let mut alone = python("b'x' * (1 << 30)");
    alone.resources.memory_mib = 64;
    let found = run(&alone).await;
    assert!(found.stderr.contains("MemoryError"), "{found:?}");
    for text in [
        "import os, time\nfor _ in range(6): os.fork()\nb = b'x' * (8 << 20)\ntime.sleep(600)",
        "import mmap, time\nm = mmap.mmap(-1, 1 << 30)\nfor i in range(1 << 30 >> 12): m[i << 12] = 1\ntime.sleep(600)",
    ] {
        let mut together = python(text);
        together.resources.memory_mib = 64;
        let found = run(&together).await;
        assert_eq!(found.exit.code, 137, "{found:?}");
        let reason = found.exit.reason.unwrap();
        assert_eq!(reason, "it used more than its limit of 64 MiB of memory");
    }
}

// Without a control group, this would count as seven times 20 MiB.
#[tokio::test]
async fn shared_memory_counts_once_in_a_control_group() {
    if !portcullis_runtime::sandbox::facts(&Default::default(), &Default::default())
        .iter()
        .any(|(name, how)| name == "memory" && how.contains("by a control group"))
    {
        return;
    }
    let text = r#"
import os, time
b = b'x' * (20 << 20)
for _ in range(6):
    if os.fork() == 0: time.sleep(1); os._exit(0)
for _ in range(6): os.wait()
print("all of them")"#;
    let mut spec = python(text);
    spec.resources.memory_mib = 64;
    let run = run(&spec).await;
    assert_eq!(run.stdout.trim(), "all of them", "{run:?}");
}
