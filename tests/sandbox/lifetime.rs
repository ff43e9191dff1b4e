//! The end of a process tree.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use tokio::io::AsyncReadExt;

use crate::harness::{descendants, gone, launch, python, tree};

const HOLDER: &str = "PORTCULLIS_TEST_HOLDER";

/// A program with a child and a grandchild, in sessions of their own.
const FAMILY: &str = "import os, time\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0: print('up', flush=True)\ntime.sleep(600)";
#[tokio::test]
async fn usage_is_reported_and_stop_ends_the_process() {
    let text = "import signal, sys\nb = b'x' * (32 << 20)\nfor _ in range(10**7): pass\nprint('up', flush=True)\nsignal.pause()";
    let mut process = launch(&python(text)).await.unwrap();
    process.stdout.read_exact(&mut [0; 3]).await.unwrap();
    let usage = process.handle.usage().await.unwrap();
    assert!((32 << 20..128 << 20).contains(&usage.memory), "{usage:?}");
    assert!(usage.cpu_seconds > 0.01, "{usage:?}");
    process.handle.stop(Duration::from_secs(60)).await;
    assert_eq!(process.handle.wait().await.code, 143);
    assert_eq!(process.handle.usage().await, None);

    // One that does not listen is ended by force.
    let deaf = "import signal, sys\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\nwhile True: signal.pause()";
    let mut process = launch(&python(deaf)).await.unwrap();
    process.stdout.read_exact(&mut [0; 3]).await.unwrap();
    process.handle.stop(Duration::from_millis(50)).await;
    let exit = process.handle.wait().await;
    assert_eq!(exit.code, 137, "{exit:?}");
}

#[tokio::test]
async fn dropped_handle_ends_the_process_tree() {
    let mut process = launch(&python(FAMILY)).await.unwrap();
    process.stdout.read_exact(&mut [0; 3]).await.unwrap();
    let tree = tree(&process);
    assert_eq!(tree.len(), 5);
    // Who waits for its end does not hold it.
    let end = tokio::spawn(process.handle.wait());
    drop(process);
    end.await.unwrap();
    gone(&tree).await;
}

#[tokio::test]
async fn killed_launcher_or_first_process_ends_the_process_tree() {
    for victim in [0, 1] {
        let mut process = launch(&python(FAMILY)).await.unwrap();
        process.stdout.read_exact(&mut [0; 3]).await.unwrap();
        let tree = tree(&process);
        kill(tree[victim]);
        assert_eq!(process.handle.wait().await.code, 137);
        gone(&tree).await;
    }
}

/// Not an independent test: the process that the next one kills.
#[tokio::test]
async fn holder() {
    if std::env::var_os(HOLDER).is_none() {
        return;
    }
    let mut process = launch(&python(FAMILY)).await.unwrap();
    process.stdout.read_exact(&mut [0; 3]).await.unwrap();
    eprintln!("holding");
    process.handle.wait().await;
}

#[tokio::test]
async fn killed_proxy_ends_the_process_tree() {
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lifetime::holder", "--nocapture"])
        .env(HOLDER, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stderr.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "holding");
    let tree = descendants(holder.id());
    assert_eq!(tree.len(), 5, "launcher, first process, program, child, grandchild");
    holder.kill().unwrap();
    holder.wait().unwrap();
    gone(&tree).await;
}

fn kill(pid: u32) {
    let killed = Command::new("/bin/kill").args(["-9", &pid.to_string()]).status().unwrap();
    assert!(killed.success(), "kill -9 {pid}");
}
