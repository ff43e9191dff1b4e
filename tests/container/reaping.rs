//! Orphans are found by their labels and their owner's lease, and other containers are kept.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use bollard::{
    Docker,
    models::{ContainerCreateBody, HostConfig},
    query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder},
};
use portcullis_runtime::container::label;

use crate::support::{api, bash, count, engine, spec, wait_until_gone};

/// A container that is only created, with the labels of ours or some of them.
async fn plant(api: &Docker, image: &str, name: &str, labels: &[(&str, &str)]) -> String {
    let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let body = ContainerCreateBody {
        image: Some(image.to_owned()),
        labels: Some(labels.iter().map(own).collect::<HashMap<_, _>>()),
        host_config: Some(HostConfig { network_mode: Some("none".into()), ..Default::default() }),
        ..Default::default()
    };
    let options = CreateContainerOptionsBuilder::new().name(name).build();
    api.create_container(Some(options), body).await.unwrap().id
}

#[tokio::test]
async fn only_own_orphans_are_removed() {
    let (engine, api) = (engine().await, api().await);
    let image = bash(&engine).await;
    let mine = spec(image.clone(), &["-c", "read"]);
    let process = engine.launch(&mine).await.unwrap();
    let all = engine.list().await.unwrap();
    let living = all.into_iter().find(|c| c.instance == mine.instance).unwrap().owner;
    // The same number, but of a process that started at another time: that one is gone.
    let dead = format!("{} 1", living.rsplit_once(' ').unwrap().0);
    let elsewhere = dead.replace("pid:[", "pid:[1");
    let unique = uuid::Uuid::now_v7().simple().to_string();
    let name = |kind: &str| format!("portcullis-orphan-{kind}{unique}");
    let labels = |owner| {
        let instance = "another-instance";
        [(label::INSTANCE, instance), (label::SERVER, "orphan"), (label::OWNER, owner)]
    };

    let orphan = plant(&api, &image, &name("a"), &labels(&dead)).await;
    let kept = [
        plant(&api, &image, &name("b"), &labels(&living)).await,
        plant(&api, &image, &name("c"), &labels(&elsewhere)).await,
        plant(&api, &image, &name("d"), &labels("not a lease")).await,
        plant(&api, &image, &format!("unrelated-{unique}"), &labels(&dead)).await,
        plant(&api, &image, &name("e"), &[]).await,
        plant(&api, &image, &name("f"), &[(label::OWNER, &dead)]).await,
    ];
    engine.reap("an-instance-with-nothing").await.unwrap();
    assert!(api.inspect_container(&orphan, None).await.is_err(), "the orphan is still there");
    for container in &kept {
        assert!(api.inspect_container(container, None).await.is_ok(), "{container} is gone");
    }
    assert_eq!(count(&engine, &mine.instance).await, 1);

    // At the end of an instance, what is its own goes, whoever lives.
    assert_eq!(engine.reap(&mine.instance).await.unwrap(), 1);
    assert_eq!(count(&engine, &mine.instance).await, 0);
    drop(process);
    for container in &kept {
        let force = RemoveContainerOptionsBuilder::new().force(true).build();
        api.remove_container(container, Some(force)).await.unwrap();
    }
}

const CHILD: &str = "PORTCULLIS_TEST_CHILD_SCRIPT";

/// The test below runs this in its own process: it launches, prints the instance, and waits to be
/// killed.
#[tokio::test]
async fn killed_child() {
    let Ok(script) = std::env::var(CHILD) else { return };
    let engine = engine().await;
    let spec = spec(bash(&engine).await, &["-c", &script]);
    let _process = engine.launch(&spec).await.unwrap();
    println!("\nlaunched {}", spec.instance);
    std::future::pending::<()>().await;
}

fn launch_and_kill(script: &str) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "reaping::killed_child", "--nocapture"])
        .env(CHILD, script)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let instance = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("launched ").map(str::to_owned))
        .expect("a launch");
    child.kill().unwrap();
    child.wait().unwrap();
    instance
}

#[tokio::test]
async fn killed_proxy_ends_servers_that_read_their_input() {
    let engine = engine().await;
    let instance = launch_and_kill("while read line; do :; done");
    wait_until_gone(&engine, &instance).await;
}

#[tokio::test]
async fn server_that_ignores_its_input_is_reaped_later() {
    let engine = engine().await;
    let instance = launch_and_kill("while :; do read -t 9 <> /tmp/p; done");
    assert_eq!(count(&engine, &instance).await, 1);
    engine.reap("the-next-instance").await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), wait_until_gone(&engine, &instance))
        .await
        .expect("reaped");
}
