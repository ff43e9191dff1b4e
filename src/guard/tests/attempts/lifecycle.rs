//! Start and end of guards, and their effect on containers.

use std::time::Duration;

use portcullis_guard::{Allow, MountRule};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use crate::stand::{Stand, TEST_TIMEOUT, create, direct, engine, image, is_there, lure, name};

#[tokio::test]
async fn containers_of_a_killed_guard_are_removed_by_the_next() {
    let mut stand = Stand::still("left", &[Allow::Pack]);
    let guard = stand.start().await;
    let image = image(&stand).await;
    stand.rules.containers = 1;
    assert_eq!(create(&stand, &image, "left").await.status, 201);
    // A container with labels of an image was not created by the guard.
    let theirs = lure(&stand, &image, "image", "an image cannot know").await;
    stand.kill(guard).await;
    stand.start().await;
    assert!(!is_there("left").await && is_there("image").await);
    let found = direct("DELETE", &format!("/v1.41/containers/{theirs}?force=true"), "").await;
    assert_eq!(found.status, 204, "{found:?}");
    let list = stand.ask("GET", "/v1.41/containers/json?all=true", "").await;
    assert_eq!(list.json(), json!([]), "{list:?}");
    // One at a time, by the new guard's rules.
    assert_eq!(create(&stand, &image, "one").await.status, 201);
    let second = create(&stand, &image, "two").await;
    assert_eq!(second.status, 429, "{second:?}");
    let gone = stand.ask("DELETE", &format!("/v1.41/containers/{}?force=1", name("one")), "").await;
    assert_eq!(gone.status, 204, "{gone:?}");
    assert_eq!(create(&stand, &image, "two").await.status, 201);
    let gone = stand.ask("DELETE", &format!("/v1.41/containers/{}?force=1", name("two")), "").await;
    assert_eq!(gone.status, 204, "{gone:?}");
}

#[tokio::test]
async fn second_guard_at_the_same_socket_removes_nothing() {
    let stand = Stand::new("second", &[Allow::Pack]).await;
    let image = image(&stand).await;
    assert_eq!(create(&stand, &image, "second").await.status, 201);
    let fault = stand.listen().await.err().expect("a fault").to_string();
    assert!(fault.contains("another process listens there"), "{fault}");
    assert!(is_there("second").await);
    assert!(stand.socket().exists());
    let target = format!("/v1.41/containers/{}?force=1", name("second"));
    assert_eq!(stand.ask("DELETE", &target, "").await.status, 204);
}

#[tokio::test]
async fn guard_removes_its_containers_on_shutdown() {
    let stand = Stand::still("end", &[Allow::Pack]);
    let guard = stand.start().await;
    let image = image(&stand).await;
    assert_eq!(create(&stand, &image, "end-a").await.status, 201);
    assert_eq!(create(&stand, &image, "end-b").await.status, 201);
    stand.end.cancel();
    timeout(TEST_TIMEOUT, guard).await.expect("its end").expect("no panic");
    assert!(!is_there("end-a").await && !is_there("end-b").await);
}

#[tokio::test]
async fn guard_ends_while_all_connections_are_in_use() {
    let mut stand = Stand::still("full", &[]);
    stand.rules.connections = 1;
    let guard = stand.start().await;
    // A request occupies a connection for as long as its body takes.
    let mut taken = UnixStream::connect(stand.socket()).await.expect("a connection");
    let head = format!(
        "POST /v1.41/containers/create?name={} HTTP/1.1\r\nHost: d\r\nExpect: 100-continue\r\n\
         Content-Length: 9\r\n\r\n",
        name("full")
    );
    taken.write_all(head.as_bytes()).await.expect("to write");
    // The guard is reading it.
    timeout(TEST_TIMEOUT, taken.read_u8()).await.expect("to go on").expect("a byte");
    stand.end.cancel();
    // Earlier than the body's timeout.
    timeout(Duration::from_secs(20), guard).await.expect("its end").expect("no panic");
}

#[tokio::test]
async fn mount_folder_with_a_socket_is_refused() {
    let mut stand = Stand::still("mounts", &[]);
    let top = stand.folder.path().to_owned();
    let link = top.join("link");
    std::os::unix::fs::symlink("/", &link).expect("a link");
    let real = engine().canonicalize().expect("the engine's socket");
    for path in [
        engine().parent().expect("a folder").to_owned(),
        real.parent().expect("a folder").to_owned(),
        real,
        top.clone(),
        stand.socket(),
        link,
    ] {
        stand.rules.mounts = vec![MountRule { path: path.clone(), writable: false }];
        let fault = stand.listen().await.err().unwrap_or_else(|| panic!("{}", path.display()));
        assert!(fault.to_string().contains("contains the socket"), "{fault}");
    }
    std::fs::create_dir(top.join("data")).expect("a folder");
    stand.rules.mounts = vec![MountRule { path: top.join("data"), writable: false }];
    assert!(stand.listen().await.is_ok());
}
