//! Egress of a sandbox, as an ordinary user, too: the proxy needs no privileges for it.

use std::sync::Arc;

use portcullis_runtime::process::LaunchSpec;

use crate::{
    egress_origin::{Recorder, STARTS, origin, serve},
    harness::{Run, finish, launch, probe_server, python, spec},
};

async fn reach(spec: &LaunchSpec, gate: &Arc<Recorder>) -> Run {
    finish(serve(launch(spec).await.unwrap(), spec, gate.clone()), "").await
}

/// The program requests a page before it does anything else.
#[tokio::test]
async fn egress_is_ready_before_the_program_starts() {
    let (port, gate) = (origin(), Arc::new(Recorder::default()));
    let place = format!("web.example:{port}");
    let mut spec = spec(&[probe_server().to_str().unwrap(), "--first", &place]);
    spec.egress = vec![format!("http://{place}=127.0.0.1").parse().unwrap()];
    for start in 0..STARTS {
        let run = reach(&spec, &gate).await;
        assert!(run.stdout.contains("seen: GET /first"), "{start}: {run:?}");
    }
    assert_eq!(gate.asked.lock().unwrap().len(), STARTS);
}

#[tokio::test]
async fn only_listed_names_and_ports_are_reachable() {
    let (port, gate) = (origin(), Arc::new(Recorder::default()));
    let script = format!(
        r#"
import os, socket, urllib.request
direct = urllib.request.build_opener(urllib.request.ProxyHandler({{}}))
for number in (0, 199):
    print(direct.open(f"http://n{{number}}.example:{port}/n{{number}}").read().decode())
for place in [("n7.example", 443), ("n7.example", 22)]:
    try:
        socket.create_connection(place, 5)
        print("connected", *place)
    except OSError as error:
        print(error.strerror, *place)
for place in [("1.1.1.1", 443), ("169.254.169.254", 80), ("192.31.196.250", {port}), ("127.0.0.1", {port})]:
    try:
        socket.create_connection(place, 5)
        print("REACHED", *place)
    except OSError:
        pass
print(sorted(name for _, name in socket.if_nameindex()))
print(len(os.listdir("/proc/self/fd")))
"#
    );
    let mut spec = python(&script);
    let names = (0..200).map(|number| format!("http://n{number}.example:{port}=127.0.0.1"));
    let more = ["n7.example:443=127.0.0.1".to_owned()];
    spec.egress = names.chain(more).map(|text| text.parse().unwrap()).collect();
    let run = reach(&spec, &gate).await;
    let lines: Vec<_> = run.stdout.lines().collect();
    assert_eq!(
        lines,
        [
            "seen: GET /n0 HTTP/1.1",
            "seen: GET /n199 HTTP/1.1",
            "connected n7.example 443",
            "Connection refused n7.example 22",
            "['lo']",
            // Its three streams and the folder that it reads: no socket of the way out is among them.
            "4",
        ],
        "{run:?}"
    );
}

#[tokio::test]
async fn host_network_excludes_an_egress_list() {
    let mut spec = python("");
    spec.egress = vec!["api.example.com:443".parse().unwrap()];
    spec.hardening.network = true;
    let refused = launch(&spec).await.unwrap_err();
    assert!(refused.what.contains("shares the proxy's network"), "{refused:?}");
}
