//! Egress of a container that has no network.

use std::{path::Path, sync::Arc, time::Duration};

use portcullis_runtime::{
    container::{Engine, label},
    process::LaunchSpec,
    started::Process,
};
use rmcp::{ServiceExt, model::CallToolRequestParams};
use serde_json::Value;

use crate::{
    egress_origin::{Recorder, STARTS, origin, serve},
    support::{Ran, api, bash, count, engine, finish, probe, spec, strings, wait_until_gone},
};

/// A launch whose way out is served.
async fn launch(engine: &Engine, spec: &LaunchSpec, gate: Arc<Recorder>) -> Process {
    serve(engine.launch(spec).await.unwrap(), spec, gate)
}

/// Runs a script of bash.
async fn run_bash(engine: &Engine, gate: Arc<Recorder>, egress: &[String], script: &str) -> Ran {
    let mut spec = spec(bash(engine).await, &["-c", script]);
    spec.egress = egress.iter().map(|text| text.parse().unwrap()).collect();
    finish(launch(engine, &spec, gate).await, "").await
}

/// Prints all that comes of one request.
const ASK: &str = r#"
ask() {
    exec 3<>"/dev/tcp/$1/$2" || return
    printf "$3" >&3
    while IFS= read -r line <&3 || [ -n "$line" ]; do echo "${line%$'\r'}"; line=; done
    exec 3>&-
}
"#;

#[tokio::test]
async fn only_listed_hosts_are_reachable() {
    assert_only_listed_hosts_are_reachable(&engine().await).await;
}

/// Tries the way out of a container of that engine, and others.
pub async fn assert_only_listed_hosts_are_reachable(engine: &Engine) {
    let port = origin();
    let gate = Arc::new(Recorder::default());
    let listed = [format!("http://web.example:{port}=127.0.0.1")];
    let script = format!(
        r#"{ASK}
        echo "$HTTP_PROXY $https_proxy"
        proxy=${{HTTP_PROXY#http://}}
        at=${{proxy%:*}} by=${{proxy#*:}}
        ask web.example {port} 'GET /direct HTTP/1.1\r\nHost: web.example:{port}\r\nConnection: close\r\n\r\n'
        echo
        ask $at $by 'GET http://web.example:{port}/proxy HTTP/1.1\r\nHost: web.example:{port}\r\nConnection: close\r\n\r\n'
        echo
        ask $at $by 'CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n'
        for place in evil.example/80 1.1.1.1/443 169.254.169.254/80 172.17.0.1/22 10.0.0.1/80 192.31.196.9/{port}; do
            (exec 4<>/dev/tcp/$place) 2>/dev/null && echo "REACHED $place"
        done
        (exec 4<>/dev/udp/8.8.8.8/53 && printf x >&4) 2>/dev/null && echo "REACHED the DNS"
        echo over
        "#
    );
    let ran = run_bash(engine, gate.clone(), &listed, &script).await;
    let said = &ran.stdout;
    assert!(
        said.contains("http://192.31.196.1:3128 http://192.31.196.1:3128"),
        "{ran:?}",
        ran = (said, &ran.stderr)
    );
    assert!(said.contains("seen: GET /direct HTTP/1.1"), "{said} {}", ran.stderr);
    assert!(said.contains("seen: GET /proxy HTTP/1.1"), "{said} {}", ran.stderr);
    assert!(said.contains("403 Forbidden"), "{said}");
    assert!(
        said.contains("write `egress = [\"evil.example:443\"]` below `[servers.subject]`"),
        "{said}"
    );
    assert!(!said.contains("REACHED") && said.contains("over"), "{said}");
    let asked = gate.asked.lock().unwrap().clone();
    let http = format!("web.example:{port} http");
    assert_eq!(asked, [http.clone(), http]);
    let told = gate.told.lock().unwrap().clone();
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!(told.iter().filter(|end| end.contains("NotListed")).count(), 1, "{told:?}");
}

/// The distribution's program, which uses `HTTPS_PROXY` or no proxy at all.
#[tokio::test]
async fn curl_reaches_listed_hosts_with_and_without_a_proxy() {
    let engine = engine().await;
    let port = origin();
    let image = engine.pack(Path::new("/usr/bin/curl")).await.unwrap();
    for more in [&[][..], &["--noproxy", "*"]] {
        let gate = Arc::new(Recorder::default());
        let url = format!("http://web.example:{port}/x");
        let command: Vec<_> = ["-sS"].iter().chain(more).copied().chain([url.as_str()]).collect();
        let mut spec = spec(image.clone(), &command);
        spec.egress = vec![format!("http://web.example:{port}=127.0.0.1").parse().unwrap()];
        let ran = finish(launch(&engine, &spec, gate).await, "").await;
        assert!(ran.stdout.contains("seen: GET /x HTTP/1.1"), "{} {}", ran.stdout, ran.stderr);
    }
}

/// The program requests a page before it does anything else.
#[tokio::test]
async fn egress_is_ready_before_the_program_starts() {
    let engine = engine().await;
    let (port, gate) = (origin(), Arc::new(Recorder::default()));
    let place = format!("web.example:{port}");
    let mut spec = spec(engine.pack(probe()).await.unwrap(), &["--first", &place]);
    spec.egress = vec![format!("http://{place}=127.0.0.1").parse().unwrap()];
    for start in 0..STARTS {
        let ran = finish(launch(&engine, &spec, gate.clone()).await, "").await;
        assert!(ran.stdout.contains("seen: GET /first"), "{start}: {} {}", ran.stdout, ran.stderr);
    }
    assert_eq!(gate.asked.lock().unwrap().len(), STARTS);
    wait_until_gone(&engine, &spec.instance).await;
}

/// The two containers of a server that has a way out: itself, and the one that holds its network.
async fn both(engine: &Engine, spec: &LaunchSpec) -> (String, String) {
    let all = engine.list().await.unwrap().into_iter();
    let (holders, servers): (Vec<_>, Vec<_>) =
        all.filter(|one| one.instance == spec.instance).partition(|one| one.holds.is_some());
    let ([server], [holder]) = (servers.as_slice(), holders.as_slice()) else {
        panic!("{servers:?} {holders:?}");
    };
    assert_eq!(holder.holds.as_ref(), Some(&server.name));
    (server.id.clone(), holder.id.clone())
}

#[tokio::test]
async fn pause_container_is_confined_and_ends_with_its_server() {
    let (engine, api) = (engine().await, api().await);
    let mut spec = spec(bash(&engine).await, &["-c", "read"]);
    spec.egress = vec!["api.example.com:443".parse().unwrap()];
    spec.resources.memory_mib = 1024;
    spec.hardening.writable_root = true;
    let launch = async || engine.launch(&spec).await.unwrap();

    let process = launch().await;
    let (server, holder) = both(&engine, &spec).await;
    let inspected = api.inspect_container(&holder, None).await.unwrap();
    let raw = serde_json::to_value(inspected).unwrap();
    let (config, host) = (&raw["Config"], &raw["HostConfig"]);
    assert_eq!(config["Entrypoint"], serde_json::json!(["/app/holder"]));
    assert_eq!(config["User"], "65534:65534");
    assert_eq!(config["Labels"][label::SERVER], "subject");
    assert_eq!(host["NetworkMode"], "none");
    assert_eq!(host["ReadonlyRootfs"], true);
    assert_eq!(host["CapDrop"], serde_json::json!(["ALL"]));
    assert_eq!((&host["Memory"], &host["PidsLimit"]), (&(16 << 20).into(), &32.into()));
    assert_eq!(host["ExtraHosts"], serde_json::json!(["api.example.com:192.31.196.2"]));
    assert_eq!(strings(&host["SecurityOpt"])[0], "no-new-privileges:true");
    let joined = api.inspect_container(&server, None).await.unwrap().host_config.unwrap();
    assert_eq!(joined.network_mode, Some(format!("container:{holder}")));

    // The server ends by itself, is stopped, is dropped, and is reaped.
    finish(process, "over\n").await;
    wait_until_gone(&engine, &spec.instance).await;
    launch().await.handle.stop(Duration::ZERO).await;
    assert_eq!(count(&engine, &spec.instance).await, 0);
    drop(launch().await);
    wait_until_gone(&engine, &spec.instance).await;
    let process = launch().await;
    assert_eq!(engine.reap(&spec.instance).await.unwrap(), 2);
    drop(process);
    assert_eq!(count(&engine, &spec.instance).await, 0);

    // Without its holder it keeps the network that it has.
    let process = launch().await;
    let (_, holder) = both(&engine, &spec).await;
    let force = bollard::query_parameters::RemoveContainerOptionsBuilder::new().force(true).build();
    api.remove_container(&holder, Some(force)).await.unwrap();
    assert_eq!(count(&engine, &spec.instance).await, 1);
    assert_eq!(finish(process, "over\n").await.exit.code, 0);
    wait_until_gone(&engine, &spec.instance).await;
}

/// The probe's report, as a server that lives until it is asked.
async fn asked(engine: &Engine, mut spec: LaunchSpec) -> Value {
    spec.image = Some(engine.pack(probe()).await.unwrap());
    let process = engine.launch(&spec).await.unwrap();
    let client = ().serve((process.stdout, process.stdin)).await.unwrap();
    let result = client.call_tool(CallToolRequestParams::new("probe")).await.unwrap();
    client.cancel().await.unwrap();
    process.handle.stop(Duration::from_secs(5)).await;
    serde_json::to_value(result).unwrap()["structuredContent"].clone()
}

#[tokio::test]
async fn profile_with_egress_differs_only_in_egress() {
    let engine = engine().await;
    let mut listed = spec("", &[]);
    listed.egress = vec!["api.example.com:443".parse().unwrap()];
    let with = asked(&engine, listed.clone()).await;
    let without = asked(&engine, spec("", &[])).await;
    for field in ["capabilities", "seccomp", "calls", "sockets", "interfaces", "writes"] {
        assert_eq!(with[field], without[field], "{field}");
    }
    assert_eq!(strings(&with["interfaces"]), [""; 0]);
    listed.image = None;
    let profile = portcullis_runtime::container::Profile::of(&listed);
    let deviations = profile.unwrap().deviations();
    assert_eq!(deviations.len(), 1);
    assert_eq!(deviations[0].to_string(), "Egress: api.example.com:443 (egress)");
}

#[tokio::test]
async fn engine_inspection_matches_the_profile_with_egress() {
    let engine = engine().await;
    let mut spec = spec(bash(&engine).await, &["-c", "read"]);
    spec.egress = vec!["api.example.com:443".parse().unwrap()];
    let process = engine.launch(&spec).await.unwrap();
    let (server, holder) = both(&engine, &spec).await;
    let profile = portcullis_runtime::container::Profile::of(&spec).unwrap();
    let inspection = engine.inspect(&server).await.unwrap();
    let of = |fields: &[(String, String)], name: &str| {
        fields.iter().find(|(field, _)| field == name).unwrap().1.clone()
    };
    assert_eq!(inspection.profile, profile.hash());
    for (name, value) in [
        ("NetworkMode", "none, held by a pause container"),
        ("ExtraHosts", "api.example.com:192.31.196.2"),
    ] {
        assert_eq!(of(&inspection.fields, name), value);
        assert_eq!(of(&profile.describe(), name), value);
    }
    assert_eq!(of(&engine.inspect(&holder).await.unwrap().fields, "NetworkMode"), "none");
    process.handle.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn failed_egress_leaves_no_container() {
    let engine = engine().await;
    let mut spec = spec(bash(&engine).await, &["-c", "read"]);
    spec.egress = vec!["api.example.com:443".parse().unwrap()];
    spec.hardening.network = true;
    let refused = engine.launch(&spec).await.unwrap_err();
    assert!(refused.what.contains("more than the `egress` list"), "{}", refused.what);
    wait_until_gone(&engine, &spec.instance).await;
}
