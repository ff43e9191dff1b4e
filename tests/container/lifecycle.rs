//! Start and end of a container.

use std::{collections::HashMap, time::Duration};

use bollard::query_parameters::{EventsOptionsBuilder, KillContainerOptionsBuilder};
use futures_util::StreamExt;
use portcullis_runtime::{container::label, started::Process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use crate::support::{api, bash, count, engine, finish, run, spec, wait_until_gone};

#[tokio::test]
async fn end_of_input_ends_and_removes_the_container() {
    let engine = engine().await;
    let spec =
        spec(bash(&engine).await, &["-c", "while read line; do echo got $line; done; exit 3"]);
    let ran = finish(engine.launch(&spec).await.unwrap(), "a\nb\n").await;
    assert_eq!((ran.stdout.as_str(), ran.exit.code), ("got a\ngot b\n", 3));
    wait_until_gone(&engine, &spec.instance).await;
}

#[tokio::test]
async fn immediate_exit_reports_output_and_code() {
    let engine = engine().await;
    let image = bash(&engine).await;
    for code in [0, 1, 42, 255] {
        let ran =
            run(&engine, &spec(image.clone(), &["-c", &format!("echo out; exit {code}")])).await;
        assert_eq!((ran.stdout.as_str(), ran.exit.code), ("out\n", code));
    }
}

#[tokio::test]
async fn large_messages_pass_unchanged_in_both_directions() {
    let engine = engine().await;
    let image = engine.pack(std::path::Path::new("/bin/cat")).await.unwrap();
    let line = "0123456789abcdef".repeat(1 << 19);
    let ran = finish(engine.launch(&spec(image, &[])).await.unwrap(), &line).await;
    assert!(ran.stdout == line, "{} of {} bytes", ran.stdout.len(), line.len());
}

#[tokio::test]
async fn unread_standard_error_does_not_block_output() {
    let engine = engine().await;
    let script = "for ((i = 0; i < 40; i++)); do printf '%065536d' 0 >&2; done; echo done";
    let mut process = engine.launch(&spec(bash(&engine).await, &["-c", script])).await.unwrap();
    let mut out = String::new();
    process.stdout.read_to_string(&mut out).await.unwrap();
    assert_eq!(out, "done\n");
    assert_eq!(process.handle.wait().await.code, 0);
}

#[tokio::test]
async fn stalled_reader_blocks_the_server_without_buffering() {
    let engine = engine().await;
    // The first count is waited for alone. All later ones come by the same stream as the output,
    // so when that is full none of them need arrive.
    let script = "echo 0 >&2; read; \
                  for ((i = 1; ; i++)); do printf '%065536d' 0; echo $i >&2; done";
    let process = engine.launch(&spec(bash(&engine).await, &["-c", script])).await.unwrap();
    let Process { mut stdin, mut stdout, stderr, handle, .. } = process;
    let mut written = BufReader::new(stderr).lines();
    assert_eq!(written.next_line().await.unwrap().unwrap(), "0");
    stdin.write_all(b"\n").await.unwrap();
    // The count stops when the pipes are full: two seconds without progress are the observation.
    let mut last: u32 = 0;
    while let Ok(Ok(Some(line))) =
        tokio::time::timeout(Duration::from_secs(2), written.next_line()).await
    {
        last = line.parse().unwrap();
    }
    assert!((0..1024).contains(&last), "{last} writes of 64 KiB");
    // Held up is not lost: read on, and the server writes on.
    let mut rest = vec![0; 1024 * 65536];
    stdout.read_exact(&mut rest).await.unwrap();
    assert!(rest.iter().all(|byte| *byte == b'0'));
    handle.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn stop_waits_for_the_grace_period_and_then_kills() {
    let engine = engine().await;
    let image = bash(&engine).await;
    let polite = "trap 'echo bye; exit 7' TERM; echo up; while :; do read -t 1 <> /dev/shm/p; done";
    let deaf = "trap '' TERM; echo up; while :; do read -t 1 <> /dev/shm/p; done";
    for (script, grace, rest, code) in [(polite, 60, "bye\n", 7), (deaf, 1, "", 137)] {
        let spec = spec(image.clone(), &["-c", script]);
        let process = engine.launch(&spec).await.unwrap();
        let Process { stdin, stdout, handle, .. } = process;
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        stdout.read_line(&mut line).await.unwrap();
        assert_eq!(line, "up\n");
        handle.stop(Duration::from_secs(grace)).await;
        // It is gone when `stop` returns.
        assert_eq!(count(&engine, &spec.instance).await, 0);
        let mut seen = String::new();
        stdout.read_to_string(&mut seen).await.unwrap();
        assert_eq!(seen, rest);
        assert_eq!(handle.wait().await.code, code);
        // Twice is once.
        handle.stop(Duration::from_secs(1)).await;
        drop(stdin);
    }
}

#[tokio::test]
async fn external_kill_is_reported_and_ends_the_streams() {
    let (engine, api) = (engine().await, api().await);
    let spec = spec(bash(&engine).await, &["-c", "printf partial; read"]);
    let mut process = engine.launch(&spec).await.unwrap();
    let mut partial = [0; 7];
    process.stdout.read_exact(&mut partial).await.unwrap();
    let id = process.handle.describe().replace("container ", "");
    let kill = KillContainerOptionsBuilder::new().signal("SIGKILL").build();
    api.kill_container(&id, Some(kill)).await.unwrap();
    let exit = process.handle.wait().await;
    assert_eq!((exit.code, exit.reason.as_deref()), (137, Some("ended by SIGKILL")));
    assert_eq!(process.stdout.read(&mut partial).await.unwrap(), 0);
    wait_until_gone(&engine, &spec.instance).await;
    // Writing to what is gone fails or does nothing; it never hangs.
    let write = async {
        for _ in 0..64 {
            if process.stdin.write_all(&[0; 65536]).await.is_err() {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), write).await.expect("no hang");
}

#[tokio::test]
async fn out_of_memory_kill_names_the_limit() {
    let engine = engine().await;
    let script = "x=0123456789abcdef; while :; do x=$x$x; done";
    let mut spec = spec(bash(&engine).await, &["-c", script]);
    spec.resources.memory_mib = 32;
    let ran = run(&engine, &spec).await;
    let reason = ran.exit.reason.unwrap_or_default();
    assert!(reason.contains("32 MiB (`resources.memory-mib`)"), "{} {reason}", ran.exit.code);
    assert_ne!(ran.exit.code, 0);
    wait_until_gone(&engine, &spec.instance).await;
}

#[tokio::test]
async fn dropped_process_is_removed() {
    let engine = engine().await;
    let spec =
        spec(bash(&engine).await, &["-c", "trap '' TERM; while :; do read -t 9 <> /tmp/p; done"]);
    let process = engine.launch(&spec).await.unwrap();
    assert_eq!(count(&engine, &spec.instance).await, 1);
    drop(process);
    wait_until_gone(&engine, &spec.instance).await;
}

#[test]
fn process_dropped_with_its_runtime_is_removed() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let first = runtime();
    let spec = first.block_on(async {
        let engine = engine().await;
        let spec = spec(bash(&engine).await, &["-c", "while :; do read -t 9 <> /tmp/p; done"]);
        let process = engine.launch(&spec).await.unwrap();
        tokio::spawn(async move {
            let _held = process;
            std::future::pending::<()>().await;
        });
        spec
    });
    drop(first);
    runtime().block_on(async { wait_until_gone(&engine().await, &spec.instance).await });
}

#[tokio::test]
async fn abandoned_launch_leaves_nothing() {
    let (engine, api) = (engine().await, api().await);
    let image = bash(&engine).await;
    for milliseconds in [0, 1, 5, 20, 50, 100, 150] {
        let spec = spec(image.clone(), &["-c", "while :; do read -t 9 <> /tmp/p; done"]);
        let limit = Duration::from_millis(milliseconds);
        let began = jiff::Timestamp::now().as_second();
        if let Ok(launched) = tokio::time::timeout(limit, engine.launch(&spec)).await {
            launched.unwrap();
        }
        // What was under way is finished, and what came of it removed: the engine tells.
        let label = format!("{}={}", label::INSTANCE, spec.instance);
        let filters =
            HashMap::from([("event", vec!["destroy".to_owned()]), ("label", vec![label])]);
        let options =
            EventsOptionsBuilder::new().since(&began.to_string()).filters(&filters).build();
        let destroyed = Box::pin(api.events(Some(options))).next().await;
        assert!(matches!(destroyed, Some(Ok(_))), "{destroyed:?}");
        assert_eq!(count(&engine, &spec.instance).await, 0);
    }
}

#[tokio::test]
async fn program_missing_from_the_image_ends_with_a_reason() {
    let (engine, api) = (engine().await, api().await);
    let parked = engine.launch(&spec(bash(&engine).await, &["-c", "read"])).await.unwrap();
    let id = parked.handle.describe().replace("container ", "");
    let options =
        bollard::query_parameters::CommitContainerOptionsBuilder::new().container(&id).build();
    let config = bollard::models::ContainerConfig {
        entrypoint: Some(vec!["/no/such/program".into()]),
        ..Default::default()
    };
    let image = api.commit_container(options, config).await.unwrap().id;
    parked.handle.stop(Duration::ZERO).await;
    let ran = run(&engine, &spec(image.clone(), &[])).await;
    assert_eq!(ran.exit.code, 127);
    assert_eq!(ran.exit.reason.as_deref(), Some("its program was not found in the image"));
    let force = bollard::query_parameters::RemoveImageOptionsBuilder::new().force(true).build();
    api.remove_image(&image, Some(force), None).await.unwrap();
}
