//! Every revision and transport of a client with every revision and transport of a server, for
//! every feature that both support. `docs/reference/matrix.md` is generated from the outcomes: run
//! this with PORTCULLIS_WRITE_DOCS=1 to write it.

mod cells;
mod table;

use std::{process::Stdio, sync::Arc};

use futures_util::StreamExt;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::support::{
    client::{Client, MODERN, REVISIONS, Transport, Wrong},
    gate::{Gate, Setup},
    in_time, portcullis, server,
};

use cells::{At, Expected, Feature};
use table::Outcome;

/// Pairs at once. Each has processes of its own.
const AT_ONCE: usize = 6;

/// One side: a revision over a transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Side {
    revision: &'static str,
    transport: Transport,
}

impl Side {
    fn all() -> Vec<Self> {
        let of = |revision| Transport::of(revision).map(|transport| Self { revision, transport });
        REVISIONS.into_iter().flat_map(of).collect()
    }

    /// The name of the server with this side.
    fn server(self) -> String {
        let transport = match self.transport {
            Transport::Http => "http",
            Transport::Stdio => "stdio",
            Transport::Sse => "sse",
        };
        format!("r{}-{transport}", self.revision)
    }
}

/// A server of another machine, as far as the proxy can tell.
async fn remote(side: Side) -> (Child, String) {
    let mut command = Command::new(server("scripted"));
    let transport = if side.transport == Transport::Sse { "sse" } else { "http" };
    command.args([side.revision, transport]).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    let mut lines = BufReader::new(stdout).lines();
    let url = in_time("a server's URL", lines.next_line()).await.unwrap().unwrap();
    (child, url)
}

/// A proxy with a server for each side.
async fn gate() -> (Gate, Vec<Child>) {
    let mut config = String::new();
    let mut children = Vec::new();
    for side in Side::all() {
        config.push_str(&format!("[servers.{}]\n", side.server()));
        if side.transport == Transport::Stdio {
            let program = server("scripted");
            config.push_str(&format!(
                "command = [\"{}\", \"{}\", \"stdio\"]\nruntime = \"sandbox\"\n",
                program.display(),
                side.revision
            ));
        } else {
            let (child, url) = remote(side).await;
            children.push(child);
            config.push_str(&format!("url = \"{url}\"\n"));
        }
    }
    (Setup::new(&config).start().await, children)
}

/// Connects to one server, or to all of them behind one endpoint.
async fn connect(gate: &Gate, client: Side, server: Option<&str>) -> Result<Arc<Client>, Wrong> {
    let revision = client.revision;
    let path = server.map(|server| format!("/servers/{server}")).unwrap_or_default();
    match client.transport {
        Transport::Http => Client::http(revision, &gate.url(&format!("{path}/mcp"))).await,
        Transport::Sse => Client::sse(revision, &gate.url(&format!("{path}/sse"))).await,
        Transport::Stdio => {
            let config = gate.path("portcullis.toml");
            let mut args = vec!["connect", "--config", config.to_str().unwrap()];
            if let Some(server) = server {
                args.extend(["--server", server]);
            }
            Client::stdio(revision, &portcullis(), &args).await
        }
    }
}

/// The cells of one pair, one after another.
async fn cells_of(
    connected: &Result<Arc<Client>, Wrong>,
    (client, server): (Side, Side),
    prefix: &str,
    features: impl Iterator<Item = Feature>,
) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for feature in features {
        let expected = feature.expected(client.revision, server.revision);
        let done = match (connected, expected) {
            (_, Expected::Absent) => Ok(()),
            (Err(wrong), _) => Err(format!("no connection: {wrong}")),
            (Ok(client), _) => {
                let at = At { client, prefix };
                let done = cells::exchange(&at, server.revision, feature).await;
                let wrongs = client.wrongs();
                match done {
                    Ok(()) if wrongs.is_empty() => Ok(()),
                    Ok(()) => Err(wrongs.join("; ")),
                    Err(wrong) if wrongs.is_empty() => Err(wrong),
                    Err(wrong) => Err(format!("{wrong}; {}", wrongs.join("; "))),
                }
            }
        };
        outcomes.push(Outcome { client, server, feature, done });
    }
    outcomes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_pair_of_revisions_works_over_every_transport() {
    let (gate, servers) = gate().await;
    let mut pairs = Vec::new();
    for client in Side::all() {
        pairs.extend(Side::all().into_iter().map(|server| (client, server)));
    }
    let gate_ref = &gate;
    let outcomes: Vec<Outcome> = futures_util::stream::iter(pairs)
        .map(|(client, server)| async move {
            let connected = connect(gate_ref, client, Some(&server.server())).await;
            cells_of(&connected, (client, server), "", Feature::ALL.into_iter()).await
        })
        .buffered(AT_ONCE)
        .flat_map(futures_util::stream::iter)
        .collect()
        .await;
    table::check_cells(&outcomes);
    table::check_page();
    gate.stop().await;
    drop(servers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_revision_works_at_the_merged_endpoint() {
    let (gate, servers) = gate().await;
    let gate_ref = &gate;
    let outcomes: Vec<Outcome> = futures_util::stream::iter(Side::all())
        .map(|client| async move {
            let connected = connect(gate_ref, client, None).await;
            let mut outcomes = Vec::new();
            for server in Side::all() {
                let prefix = format!("{}__", server.server());
                // Over the one pipe that all its clients share, its log messages name no call: with
                // more than one under way they are nobody's.
                let shared = server.revision == MODERN && server.transport == Transport::Stdio;
                let features = Feature::ALL.into_iter().filter(|feature| feature.names_a_server());
                let features = features.filter(|feature| *feature != Feature::Log || !shared);
                outcomes.extend(cells_of(&connected, (client, server), &prefix, features).await);
            }
            outcomes
        })
        .buffered(AT_ONCE)
        .flat_map(futures_util::stream::iter)
        .collect()
        .await;
    table::check_cells(&outcomes);
    gate.stop().await;
    drop(servers);
}

/// The control: failures of the tests above are the proxy's.
#[tokio::test]
async fn each_revision_works_without_a_proxy() {
    let mut outcomes = Vec::new();
    for side in Side::all() {
        let (connected, _child) = if side.transport == Transport::Stdio {
            let program = server("scripted");
            (Client::stdio(side.revision, &program, &[side.revision, "stdio"]).await, None)
        } else {
            let (child, url) = remote(side).await;
            let client = match side.transport {
                Transport::Sse => Client::sse(side.revision, &url).await,
                _ => Client::http(side.revision, &url).await,
            };
            (client, Some(child))
        };
        outcomes.extend(cells_of(&connected, (side, side), "", Feature::ALL.into_iter()).await);
    }
    table::check_cells(&outcomes);
}
